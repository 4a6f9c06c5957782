# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Puts a measured table into a document, between `<!-- name -->` and `<!-- /name -->`."""

import re
from pathlib import Path


def update(path: Path, name: str, table: str):
    """Replaces what stands between the markers; raises ValueError if they are not there once."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = path.read_text()
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} must hold the markers {start} and {end} once each.")
    path.write_text(re.sub(f"(?<={start}\n).*?(?={end})", lambda _: table, text, flags=re.DOTALL))
