# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: the line of the processor and the versions, and tables between markers of a document."""

from pathlib import Path

import diffusers
import torch


def versions(device: str) -> str:
    processor = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{processor}; torch {torch.__version__}, diffusers {diffusers.__version__}"


def around(path: Path, name: str) -> tuple[str, str]:
    """
    The text of a document up to `<!-- name -->` and from `<!-- /name -->` on; raises ValueError if it does not hold
    each of them once.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = path.read_text()
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} must hold the markers {start} and {end} once each.")
    return text[: text.index(start) + len(start)], text[text.index(end) :]


def check(path: Path | None, *names: str):
    """Before the work: raises ValueError or OSError if the tables of these names have no place in the document."""
    for name in names if path is not None else ():
        around(path, name)


def update(path: Path | None, name: str, table: str):
    """Replaces what stands between the markers, if there is a document."""
    if path is not None:
        before, after = around(path, name)
        path.write_text(f"{before}\n{table}{after}")
