"""
The Python snippets of the README and of the chapters in docs/ are run as they stand, those of a document in order;
test_hub runs the `hub` ones. The links of all documents lead somewhere.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from ddim_scheduler.evaluation import DigitClassifier

ROOT = Path(__file__).parents[1]
CHAPTERS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*CHAPTERS, *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "RESULTS"))]
DOCUMENTS += sorted((ROOT / "models").glob("*/README.md"))
KINDS = {"python", "python slow", "python hub", "bash", ""}


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def blocks(document: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def run_snippets(document: Path, kind: str, namespace: dict):
    for snippet in blocks(document, kind):
        exec(compile(snippet, name_of(document), "exec"), namespace)


@pytest.fixture
def workplace(pipeline, tmp_path, monkeypatch):
    """A folder with what the snippets read: models, and small stand-ins for images and for the classifier."""
    shutil.copytree(ROOT / "models", tmp_path / "models")
    pipeline.save_pretrained(tmp_path / "outputs" / "digits")
    save_file(DigitClassifier().state_dict(), tmp_path / "outputs" / "digits-classifier.safetensors")
    rng = np.random.default_rng(0)
    folders = {"outputs/generated": (40, 16, 16), "data/digits/train": (40, 28, 28), "photos/cats": (2, 64, 80, 3)}
    for folder, shape in folders.items():
        (tmp_path / folder).mkdir(parents=True)
        for k, pixels in enumerate(rng.integers(256, size=shape, dtype=np.uint8)):
            PIL.Image.fromarray(pixels).save(tmp_path / folder / f"{k}.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("document", [d for d in CHAPTERS if blocks(d, "python")], ids=name_of)
def test_snippets_run(document, workplace):
    run_snippets(document, "python", {})


@pytest.mark.slow
def test_slow_snippets_run(pipeline):
    documents = [document for document in CHAPTERS if blocks(document, "python slow")]
    assert documents
    for document in documents:
        run_snippets(document, "python slow", {"pipe": pipeline, "torch": torch})


@pytest.mark.parametrize("document", CHAPTERS, ids=name_of)
def test_every_block_is_of_a_kind_that_is_known(document):
    """Otherwise a snippet would be run by nobody."""
    fences = re.findall(r"^```(.*)$", document.read_text(), flags=re.MULTILINE)
    assert set(fences[::2]) <= KINDS - ({"python hub"} if document.name != "sharing.md" else set())
    assert set(fences[1::2]) <= {""}


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_chapter_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text()
    for chapter in CHAPTERS[1:]:
        assert f"({name_of(chapter)})" in text
