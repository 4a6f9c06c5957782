"""The Python snippets of the README are run as they stand, in order, in one process; test_hub runs the `hub` ones."""

import re
import shutil
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def run_snippets(kind: str, namespace: dict):
    snippets = re.findall(rf"```{kind}\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), namespace)


def test_readme_snippets_run(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(README.parent / "models", "models")
    pipeline.save_pretrained("outputs/digits")
    run_snippets("python", {})


@pytest.mark.slow
def test_slow_readme_snippets_run(pipeline):
    run_snippets("python slow", {"pipe": pipeline, "torch": torch})
