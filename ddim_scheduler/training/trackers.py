# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate's trackers: started so that a resumed run goes on in its record, and never the end of a training."""

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from PIL.Image import Image

logger = get_logger(__name__, log_level="INFO")

RUN_ID = "logs/run_id"


def start_trackers(accelerator: Accelerator, output_dir: Path, settings: Mapping[str, Any], step: int):
    """
    Starts the tracker that was asked for, with all that it writes in `logs/`.

    Args:
        accelerator: Knows which one.
        output_dir: The folder of the run; `logs/run_id` there names its record on wandb.
        settings: Of the run, for the tracker.
        step: Optimizer steps that are done; what TensorBoard has of later ones is hidden.
    """
    logs = output_dir / "logs"
    run_id = None
    if accelerator.is_main_process:
        path = output_dir / RUN_ID
        if not path.is_file():
            path.write_text(uuid.uuid4().hex[:8])
        run_id = path.read_text()
    arguments = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"id": run_id, "resume": "allow", "dir": str(logs)},
        "dvclive": {"dir": str(logs / "dvclive"), "resume": True},
        "swanlab": {"logdir": str(logs / "swanlab")},
    }
    with kept_going(accelerator):
        accelerator.init_trackers(
            "train", config={name: str(value) for name, value in settings.items()}, init_kwargs=arguments
        )


@contextlib.contextmanager
def kept_going(accelerator: Accelerator) -> Iterator[None]:
    """Says what a tracker could not do, once, and goes on without it."""
    try:
        yield
    except Exception as error:
        names = ", ".join(map(str, accelerator.log_with))
        logger.warning(
            f"`logger` {names} failed and is not used any more; losses and previews are in the output folder. "
            f"({type(error).__name__}: {error})"
        )
        accelerator.trackers.clear()


def log_values(accelerator: Accelerator, values: Mapping[str, float], step: int):
    """Gives numbers to the tracker."""
    with kept_going(accelerator):
        accelerator.log(values, step=step)


def log_preview(accelerator: Accelerator, images: torch.Tensor, grid: Image, step: int):
    """
    Gives a preview to a tracker that takes pictures.

    Args:
        accelerator: Has the tracker.
        images: uint8 (N, C, H, W), gray or colour, for TensorBoard, which knows no alpha.
        grid: The same as one picture.
        step: Number of optimizer steps done.
    """
    with kept_going(accelerator):
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": images.numpy()}, step=step)
            elif hasattr(tracker, "log_images"):  # each takes another form of one picture
                is_list = tracker.name not in ("aim", "clearml")
                tracker.log_images({"samples": [grid] if is_list else grid}, step=step)


def end_training(accelerator: Accelerator):
    """Closes the tracker and the group of processes."""
    with kept_going(accelerator):
        for tracker in accelerator.trackers:
            tracker.finish()
    accelerator.trackers.clear()
    accelerator.end_training()
