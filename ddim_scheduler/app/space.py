# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The page of a model as a Hugging Face Space: a folder that is pushed as it is."""

import json
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from huggingface_hub import SpaceCardData
from packaging.requirements import Requirement

from ..pipelines import pipeline_ddim

DISTRIBUTION = "ddim-scheduler"
MODEL_FOLDER = "model"

APP = '''\
"""The page of a model, by ddim-scheduler, whose code is in this folder."""

from ddim_scheduler.app.__main__ import main

main([{model}])
'''


def export_space(model: str, folder: Path):
    """
    Writes what a Space needs: app.py, requirements.txt, README.md, this package's code, and the model if it is local.

    Args:
        model: Folder or Hub id of an `EtaDDIMPipeline`.
        folder: A new or empty folder.

    Raises:
        ValueError: If the folder holds anything, before anything is written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`--export-space` must be a new or empty folder, but is {folder}.")
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # an export that ends early, or a second one at once, leaves no half of a Space
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as unfinished:
        space = Path(unfinished) / "space"
        space.mkdir()
        write_space(model, space)
        try:
            space.rename(folder)
        except OSError as error:
            raise ValueError(f"`--export-space` is {folder}, where another file came to be: {error}.") from error


def write_space(model: str, folder: Path):
    """Writes the files of a Space into a folder."""
    if is_local := Path(model).is_dir():
        copy_model(Path(model), folder / MODEL_FOLDER)
    name = Path(model).resolve().name if is_local else model
    card = SpaceCardData(
        title=f"DDIM: {name.rpartition('/')[2]}",
        sdk="gradio",
        sdk_version=metadata.version("gradio"),
        app_file="app.py",
        models=None if is_local else [model],
    )
    text = f"Samples of {name}, samplers side by side, interpolation, inversion and editing: `python app.py`."
    (folder / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n\n{text}\n", encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(space_requirements()) + "\n", encoding="utf-8")
    (folder / "app.py").write_text(APP.format(model=json.dumps(MODEL_FOLDER if is_local else model)), encoding="utf-8")
    # in a clone the pipelines stand beside the package
    without_caches = shutil.ignore_patterns("__pycache__")
    package = folder / "ddim_scheduler"
    shutil.copytree(Path(__file__).parents[1], package, ignore=without_caches)
    shutil.copytree(
        Path(pipeline_ddim.__file__).parent, package / "pipelines", ignore=without_caches, dirs_exist_ok=True
    )


def space_requirements() -> list[str]:
    """What this package and its page need, in the ranges of setup.cfg."""
    found = []
    for line in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": "app"}):
            requirement.marker = None
            found.append(str(requirement))
    return found


def copy_model(source: Path, folder: Path):
    """Copies what the pipeline's index names, and leaves checkpoints and logs of a training behind."""
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    folder.mkdir()
    shutil.copy(source / "model_index.json", folder)
    for component, entry in index.items():
        if isinstance(entry, list) and (source / component).is_dir():
            shutil.copytree(source / component, folder / component, ignore=shutil.ignore_patterns("__pycache__"))
