# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The folder that a run writes: may it, who else does, and what is deleted there."""

import fcntl
import filecmp
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

from .. import EtaDDIMPipeline, EtaDDIMScheduler, travelling
from ..sharing import PIPELINE_CODE, PIPELINE_ENTRY, SCHEDULER_ENTRY
from .checkpoints import SETTINGS, list_checkpoints

logger = logging.getLogger(__name__)

LOCK = ".lock"
CHANGES = "logs/changes.jsonl"
WEIGHTS = Path("unet", SAFETENSORS_WEIGHTS_NAME)
OTHER_OUTPUTS = ("unet", "scheduler", "model_index.json", "pipeline.py", "sample.png", "samples", "logs", SETTINGS)


def check_output_dir(
    output_dir: str | Path, inputs: Mapping[str, str | Path | None], overwrite: bool = False, resume: bool = False
) -> dict[str, int]:
    """
    Refuses a folder that cannot be written to, or that holds what nobody said may go.

    Args:
        output_dir: The folder, which need not be there yet.
        inputs: What the run reads, by the names of the options; `train_data_dir` must not hold the folder, and none
            of them may be deleted with what a former run wrote.
        overwrite: Whether that is to be deleted.
        resume: Whether its run is to be continued.

    Returns:
        What was found there, for `open_output_dir`.

    Raises:
        ValueError: If so; nothing was changed.
    """
    output_dir = Path(output_dir).absolute()
    existing = next(path for path in (output_dir, *output_dir.parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"`output_dir` {output_dir} cannot be a folder: {existing} is a file.")
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=True):
        raise ValueError(f"`output_dir` {output_dir} cannot be written: no permission in {existing}.")
    train_data_dir = inputs.get("train_data_dir")
    if train_data_dir is not None and output_dir.resolve().is_relative_to(Path(train_data_dir).resolve()):
        raise ValueError(
            f"`output_dir` {output_dir} is in `train_data_dir`: its previews would be trained on, if resumed."
        )
    if not (found := _state_of(output_dir)):
        return found
    is_of_a_run = (output_dir / LOCK).is_file() or (output_dir / SETTINGS).is_file()
    if overwrite:
        if not is_of_a_run:
            raise ValueError(f"`output_dir` {output_dir} holds files, but of no training: nothing is deleted there.")
        for name, given in inputs.items():
            if given and any(Path(given).resolve().is_relative_to(path.resolve()) for path in outputs(output_dir)):
                raise ValueError(f"`overwrite_output_dir` would delete `{name}`, {given}.")
    elif not resume or not (is_of_a_run or list_checkpoints(output_dir)):
        raise ValueError(
            f"`output_dir` is not empty: {output_dir}. See --resume_from_checkpoint, --overwrite_output_dir."
        )
    return found


def open_output_dir(output_dir: Path, settings: Mapping[str, Any], found: dict[str, int], overwrite: bool = False):
    """
    Makes the folder, locks it, clears away what is to go, and writes the settings of the run. For one process.

    Args:
        output_dir: A folder that `check_output_dir` has let pass.
        settings: For `training_args.json`.
        found: What `check_output_dir` has found there.
        overwrite: Delete what a former run wrote, and nothing else.

    Raises:
        ValueError: If another run is writing there, or has since then.
        OSError: If the folder cannot be written.
    """
    lock(output_dir)
    if _state_of(output_dir) != found:
        raise ValueError(
            f"`output_dir` {output_dir} was written to by another run while this one read its images: start it again."
        )
    for path in outputs(output_dir) if overwrite else []:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in output_dir.glob("unfinished-*/"):
        shutil.rmtree(path)
    write_whole(output_dir / SETTINGS, json.dumps(settings, indent=2) + "\n")


def _state_of(output_dir: Path) -> dict[str, int]:
    """What a folder holds beside the lock, and when each was changed."""
    paths = [path for path in output_dir.glob("*") if path.name != LOCK]
    return {path.name: path.stat().st_mtime_ns for path in paths if path.exists()}


def lock(output_dir: Path):
    """Keeps other runs out of the folder until this process ends, in whatever way; makes the folder."""
    output_dir.mkdir(parents=True, exist_ok=True)
    file = os.open(output_dir / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ValueError(f"`output_dir` {output_dir} is in use by another run.") from None
    except OSError as error:  # a file system without locks
        logger.warning(f"{output_dir} cannot be locked ({error}): start no second run there.")


def outputs(output_dir: Path) -> list[Path]:
    """What a run writes, whether it is there or not."""
    code = output_dir.glob(travelling.NAMES)
    return [*list_checkpoints(output_dir), *code, *(output_dir / name for name in OTHER_OUTPUTS)]


def record_changes(output_dir: Path, step: int, changes: Mapping[str, tuple[Any, Any]]):
    """Adds a line of what a resumed run has changed, from which value to which, to `logs/changes.jsonl`."""
    if changes:
        with open(output_dir / CHANGES, "a") as file:
            file.write(json.dumps({"step": step, "changed": changes}) + "\n")


def write_pipeline(pipeline: EtaDDIMPipeline, output_dir: Path):
    """
    Writes the pipeline of a run, where an earlier one of the same model may be.

    Each file replaces its former one at once, and none is gone for a moment: the folder can be loaded while this runs
    and wherever it is killed. What a network is is the same all through a run. Samplers that were fitted to the weights
    that are there stay if these are the same weights; a scheduler is replaced before other weights are.

    Raises:
        OSError: If it cannot be written; the former one can be loaded.
    """
    aside = output_dir / "unfinished-pipeline"
    try:
        pipeline.save_pretrained(aside, max_shard_size="1TB")  # of several files some could be older
        fitted = None if pipeline.scheduler.config.fitted_tables else _fitted_scheduler(output_dir)
        if fitted is not None and filecmp.cmp(output_dir / WEIGHTS, aside / WEIGHTS, shallow=False):
            logger.info(
                f"The weights are those in {output_dir}: the samplers that were fitted to them stay, in the place of "
                "this run's `timestep_spacing` and `clip_sample`."
            )
            pipeline.scheduler = fitted
            pipeline.save_pretrained(aside, max_shard_size="1TB")
        files = [path.relative_to(aside) for path in aside.rglob("*") if path.is_file()]
        order = [EtaDDIMScheduler.config_name, "", SCHEDULER_ENTRY, PIPELINE_ENTRY, "model_index.json"]  # name others
        for file in sorted(files, key=lambda file: order.index(file.name if file.name in order else "")):
            (output_dir / file).parent.mkdir(exist_ok=True)
            (aside / file).replace(output_dir / file)
    except Exception as error:
        raise OSError(f"The pipeline in {output_dir} cannot be written ({error}).") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for path in [path for pattern in PIPELINE_CODE for path in output_dir.glob(pattern)]:
        if path.relative_to(output_dir) not in files:  # of another version of this package
            path.unlink()


def _fitted_scheduler(output_dir: Path) -> EtaDDIMScheduler | None:
    """The scheduler of a whole pipeline there, if it has fitted samplers."""
    try:
        scheduler = EtaDDIMScheduler.from_pretrained(output_dir, subfolder="scheduler")
    except (OSError, TypeError, ValueError):
        return None
    return scheduler if scheduler.config.fitted_tables and (output_dir / WEIGHTS).is_file() else None


def write_whole(path: Path, text: str):
    """
    Writes a file under another name first, so that a kill leaves the old one or the new one.

    Raises:
        OSError: If it cannot be written; an old one is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    try:
        unfinished.write_text(text)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error}") from error
    unfinished.replace(path)
