# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The losses that a run logs: means over all processes, as lines of JSON that a resumed run continues."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from .output_folder import write_whole

LOSS_LOG = "logs/losses.jsonl"
TIMESTEP_BUCKETS = 4  # the log has the loss of each quarter of the timesteps


def mean_losses(
    accelerator: Accelerator, recent: Sequence[tuple[torch.Tensor, torch.Tensor]], num_train_timesteps: int
) -> dict[str, float]:
    """
    The mean of the losses of all processes, over all timesteps and for each quarter of them that has any.

    Args:
        accelerator: Gathers what the processes have.
        recent: The loss and the timestep of each image, (B,) both, for each forward pass since the last line.
        num_train_timesteps: Number of noise levels T.
    """
    loss, timesteps = (accelerator.gather(torch.cat(parts)).cpu().numpy() for parts in zip(*recent, strict=True))
    means = {"loss": float(loss.mean(dtype=np.float64))}
    for part in np.array_split(np.arange(num_train_timesteps), TIMESTEP_BUCKETS):
        is_inside = np.isin(timesteps, part)
        if is_inside.any():
            means[f"loss/timesteps_{part[0]}-{part[-1]}"] = float(loss[is_inside].mean(dtype=np.float64))
    return means


def append_to_loss_log(output_dir: Path, step: int, values: dict[str, float]):
    """Adds a line of what was measured at a step."""
    with open(output_dir / LOSS_LOG, "a") as file:
        file.write(json.dumps({"step": step, **values}) + "\n")


def trim_loss_log(output_dir: Path, step: int):
    """Drops the lines after a step, and half a line that a killed run left; makes the file if there is none."""
    path, kept = output_dir / LOSS_LOG, []
    for line in path.read_text().splitlines(keepends=True) if path.is_file() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # no whole line of the log
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                kept.append(line)
    write_whole(path, "".join(kept))
