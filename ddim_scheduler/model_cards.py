# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The text of the README.md that a push to the Hub writes."""

from typing import Any

from huggingface_hub import ModelCardData


def scheduler_card(scheduler: Any, repo_id: str, license: str | None) -> str:
    """The card of a scheduler alone. It repeats no setting, so that it stays true when others are pushed."""
    name = type(scheduler).__name__
    metadata = ModelCardData(library_name="diffusers", license=license, tags=["ddim"])
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {repo_id.split('/')[-1]}",
        "A scheduler for [DDIM](https://arxiv.org/abs/2010.02502), with the settings in `scheduler_config.json`.",
        "With the package ddim-scheduler:",
        f"```python\nfrom {type(scheduler).__module__} import {name}",
        f'scheduler = {name}.from_pretrained("{repo_id}")\n```',
    ]
    return "\n\n".join(parts) + "\n"
