# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Checkpoints that are whole or not there, and which of them a run may go on from. There must be an `Accelerator` already,
whose main process logs.
"""

import json
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger

logger = get_logger(__name__, log_level="INFO")

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
CHECKSUMS = "checksums.json"
SETTINGS = "training_args.json"  # of the run, beside its checkpoints
# what a checkpoint depends on, and a resumed run must therefore not change
FIXED_SETTINGS = (
    *("resolution", "channels", "condition_channels", "class_conditional", "model_config_name_or_path"),
    *("block_out_channels", "layers_per_block", "attention_resolutions", "prediction_type", "ddpm_num_steps"),
    *("ddpm_beta_schedule", "rescale_betas_zero_snr", "use_ema", "ema_inv_gamma", "ema_power", "ema_max_decay"),
    *("adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "seed", "class_names"),
)
# of one start of the run and not of its training
NOT_OF_THE_TRAINING = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "cache_dir")


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders named checkpoint-N, oldest first, whole or not."""
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if CHECKPOINT_NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which a checkpoint was written, from its name."""
    return int(checkpoint.name.split("-")[1])


def save_checkpoint(accelerator: Accelerator, output_dir: str | Path, step: int, total_limit: int | None = None):
    """
    Writes a checkpoint under a temporary name and renames it, so that one with a proper name is whole. All processes
    call it.

    Args:
        accelerator: Has prepared or registered all that is to be saved.
        output_dir: The folder of the run; the checkpoint becomes `checkpoint-{step}` in it.
        step: Number of optimizer steps done.
        total_limit: Number of checkpoints to keep; the oldest before this one are deleted.

    Raises:
        OSError: If it cannot be written; nothing of it is left.
    """
    path = Path(output_dir, f"checkpoint-{step}")
    unfinished = path.with_name(f"unfinished-{path.name}")
    try:
        accelerator.save_state(str(unfinished))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (unfinished / CHECKSUMS).write_text(json.dumps(checksums(unfinished), indent=2) + "\n")
            shutil.rmtree(path, ignore_errors=True)
            unfinished.rename(path)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(
            f"The checkpoint {path} cannot be written ({error}). Those before it are as they were."
        ) from error
    if accelerator.is_main_process and total_limit is not None:
        older = [other for other in list_checkpoints(output_dir) if step_of(other) < step]
        for other in older[: max(0, len(older) + 1 - total_limit)]:
            shutil.rmtree(other)


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> int:
    """
    Loads what `save_checkpoint` wrote into what the accelerator has prepared or registered, and returns its step.

    Raises:
        ValueError: If the checkpoint does not fit.
    """
    try:
        accelerator.load_state(str(checkpoint))
    except Exception as error:
        raise ValueError(f"`resume_from_checkpoint` {checkpoint} cannot be loaded: {error}") from error
    return step_of(checkpoint)


def checksums(folder: Path) -> dict[str, int]:
    """The CRC-32 of each file of a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in files}


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint holds what was written."""
    try:
        return json.loads((checkpoint / CHECKSUMS).read_text()) == checksums(checkpoint)
    except (OSError, ValueError):
        return False


def find_checkpoint(output_dir: str | Path, resume_from_checkpoint: str | Path | None) -> Path | None:
    """
    The checkpoint to resume from: None if none is asked for, or "latest" is and there is none yet.

    Args:
        output_dir: The folder of the run.
        resume_from_checkpoint: A folder named checkpoint-N, its name alone if it is in `output_dir`, or "latest": the
            newest whole one there.

    Raises:
        ValueError: If there is no such checkpoint, it is not whole, or later ones would be mixed with those to come.
    """
    if resume_from_checkpoint is None:
        return None
    if resume_from_checkpoint == "latest":
        checkpoints = list_checkpoints(output_dir)
        for path in reversed(checkpoints):
            if is_whole(path):
                return path
            logger.warning(f"{path} is not whole and is not used.")
        if checkpoints:
            raise ValueError(f"`resume_from_checkpoint` is 'latest', but no checkpoint in {output_dir} is whole.")
        logger.warning(f"There is no checkpoint in {output_dir} yet: the training starts at step 0.")
        return None
    path = Path(output_dir, resume_from_checkpoint)
    if path.parent != Path(output_dir) or not path.is_dir():
        path = Path(resume_from_checkpoint)
    if not (path.is_dir() and CHECKPOINT_NAME.fullmatch(path.name)):
        there = [other.name for other in list_checkpoints(output_dir)]
        raise ValueError(
            f"`resume_from_checkpoint` is no folder named checkpoint-N: {path}. In {output_dir} there are {there}."
        )
    if not is_whole(path):
        others = [str(other) for other in list_checkpoints(path.parent) if other != path]
        raise ValueError(f"`resume_from_checkpoint` {path} is not whole. Other checkpoints: {others}")
    for later in list_checkpoints(output_dir):
        if step_of(later) > step_of(path) and is_whole(later):
            raise ValueError(
                f"`resume_from_checkpoint` {path}: move {later} away, which would be mixed with the new ones."
            )
    return path


def check_resumed_settings(
    checkpoint: Path, settings: Mapping[str, Any], max_train_steps: int
) -> dict[str, tuple[Any, Any]]:
    """
    Refuses to continue a run of another model, objective or optimizer, or one that went further.

    Args:
        checkpoint: Where the run goes on; the settings it had are in `training_args.json` beside it.
        settings: Those of this run, with all of `FIXED_SETTINGS`, as JSON has them.
        max_train_steps: The last step of this run.

    Returns:
        What else has changed: names, and the former and the new value.

    Raises:
        ValueError: If so, or if the former settings cannot be read.
    """
    if step_of(checkpoint) > max_train_steps:
        raise ValueError(f"`resume_from_checkpoint` {checkpoint} is after the last step, {max_train_steps}.")
    record = checkpoint.parent / SETTINGS
    try:
        former = json.loads(record.read_text()) if record.is_file() else {}
    except ValueError as error:
        raise ValueError(f"`resume_from_checkpoint`: {record} cannot be read: {error}") from error
    changes = {
        name: (former[name], value)
        for name, value in settings.items()
        if name in former and former[name] != value and name not in NOT_OF_THE_TRAINING
    }
    if former.get("channels", 0) is None:  # an earlier version wrote the option, not what it came to
        changes.pop("channels", None)
    for name in FIXED_SETTINGS:
        if name in changes:
            old, new = changes[name]
            raise ValueError(f"`{name}` is {new!r}, but {old!r} in the run of {checkpoint}.")
    return changes
