# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The losses that a run logs: means over all processes, as lines of JSON that a resumed run continues."""

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel

from .. import EtaDDIMScheduler, image_generators
from .batches import noised, with_condition
from .checkpoints import list_checkpoints
from .images import ImageDataset
from .output_folder import write_whole

LOSS_LOG = "logs/losses.jsonl"
VALIDATION_PAIRS = 256  # images and timesteps of a validation loss, at least
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
    return _means(loss, timesteps, num_train_timesteps)


def _means(loss: np.ndarray, timesteps: np.ndarray, num_train_timesteps: int) -> dict[str, float]:
    means = {"loss": float(loss.mean(dtype=np.float64))}
    for part in np.array_split(np.arange(num_train_timesteps), TIMESTEP_BUCKETS):
        is_inside = np.isin(timesteps, part)
        if is_inside.any():
            means[f"loss/timesteps_{part[0]}-{part[-1]}"] = float(loss[is_inside].mean(dtype=np.float64))
    return means


@torch.no_grad()
def validation_losses(
    accelerator: Accelerator,
    unet: UNet2DModel,
    noise_scheduler: EtaDDIMScheduler,
    held_out: ImageDataset,
    weights: torch.Tensor,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """
    The mean loss of images that are not trained on, over all timesteps and for each quarter of them. All processes call
    it. The images meet the same timesteps, evenly spread, and the same noise each time, for any number of processes, so
    that its values can be compared.

    Args:
        accelerator: Says which images are this process's.
        unet: The model, in evaluation mode.
        noise_scheduler: The noise levels, and what the model predicts.
        held_out: The images. Few are taken several times, to `VALIDATION_PAIRS` images and timesteps.
        weights: Of the loss at each timestep, (T,), as in training.
        batch_size: Images at once in a process.
        seed: Of the noise.
    """
    number, num_timesteps = max(len(held_out), VALIDATION_PAIRS), len(noise_scheduler)
    share = math.ceil(number / accelerator.num_processes)  # if it is rounded up, the last ones are dropped
    first, losses = accelerator.process_index * share, []
    for start in range(first, first + share, batch_size):
        pairs = range(start, min(start + batch_size, first + share))
        images, labels, *conditions = torch.utils.data.default_collate([held_out[k % len(held_out)] for k in pairs])
        noise = torch.stack([torch.randn(images.shape[1:], generator=g) for g in image_generators(seed, pairs)])
        timesteps = torch.tensor([min(k, number - 1) * num_timesteps // number for k in pairs])
        images, labels, noise, timesteps = (x.to(accelerator.device) for x in (images, labels, noise, timesteps))
        noisy_images, _, target = noised(images, noise, timesteps, noise_scheduler)
        model_input = with_condition(noisy_images, [c.to(accelerator.device) for c in conditions])
        labels = labels if unet.class_embedding is not None else None
        prediction = unet(model_input, timesteps, labels).sample
        losses.append((prediction.float() - target).square().mean(dim=(1, 2, 3)) * weights[timesteps])
    loss = accelerator.gather(torch.cat(losses))[:number].cpu().numpy()
    timesteps_of_all = np.arange(number) * num_timesteps // number
    return {f"validation_{name}": mean for name, mean in _means(loss, timesteps_of_all, num_timesteps).items()}


def check_loss(loss: float, learning_rate: float, output_dir: Path, step: int):
    """
    Refuses to go on with a model that is lost.

    Raises:
        ValueError: If the loss is not finite; the checkpoints before this step are named.
    """
    if not math.isfinite(loss):
        _refuse(f"The loss is {loss}", learning_rate, output_dir, step)


def check_weights(unet: UNet2DModel, learning_rate: float, output_dir: Path, step: int):
    """
    Refuses to save a model that is lost, which its loss, that before the step, does not tell yet.

    Raises:
        ValueError: If a weight is not finite; the checkpoints before this step are named.
    """
    if not torch.stack([weight.isfinite().all() for weight in unet.parameters()]).all():
        _refuse("Weights are not finite", learning_rate, output_dir, step)


def _refuse(what: str, learning_rate: float, output_dir: Path, step: int):
    earlier = [str(path) for path in list_checkpoints(output_dir)]
    raise ValueError(f"{what} at step {step}, with `learning_rate` {learning_rate}. Checkpoints before it: {earlier}")


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
