# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: the line of the processor and the versions, and tables between markers of a document."""

import re
from pathlib import Path

import diffusers
import torch


def versions(device: str) -> str:
    processor = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{processor}; torch {torch.__version__}, diffusers {diffusers.__version__}"


def markers(path: Path, name: str) -> tuple[str, str]:
    """`<!-- name -->` and `<!-- /name -->`; raises ValueError if the document does not hold each of them once."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = path.read_text()
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} must hold the markers {start} and {end} once each.")
    return start, end


def update(path: Path, name: str, table: str):
    """Replaces what stands between the markers."""
    start, end = markers(path, name)
    text = path.read_text()
    path.write_text(re.sub(f"(?<={start}\n).*?(?={end})", lambda _: table, text, flags=re.DOTALL))
