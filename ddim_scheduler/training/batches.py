# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
What the model is shown at a step, and how much its errors weigh.

All randomness of a step comes from the seed and the number of the step, never from what ran before, so that a resumed
run continues on the same images and the same noise as one that was not interrupted. It is drawn for the images of all
processes together, so that their number changes nothing either.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from diffusers.training_utils import compute_snr

from ..scheduling_ddim import EtaDDIMScheduler
from .signals import ignore_signals

logger = logging.getLogger(__name__)


class TrainingBatch(NamedTuple):
    """What one process needs for a forward pass on B images."""

    noisy_images: torch.Tensor  # x_t, (B, C, H, W), float32
    timesteps: torch.Tensor  # t, (B,), in 0..T-1
    target: torch.Tensor  # what the model should return, (B, C, H, W), float32
    is_dropped: torch.Tensor  # whose label and condition are to be left out, (B,), bool


def count_batches(num_images: int, global_batch_size: int, gradient_accumulation_steps: int = 1) -> tuple[int, int]:
    """
    How many forward passes make an epoch, and how many of them an optimizer step; the last of an epoch may have fewer.

    Args:
        num_images: Images of an epoch.
        global_batch_size: Images of a forward pass, over all processes.
        gradient_accumulation_steps: Forward passes of an optimizer step that were asked for; an epoch may have fewer.

    Raises:
        ValueError: If there are fewer images than a forward pass takes.
    """
    if num_images < global_batch_size:
        raise ValueError(
            f"`train_batch_size` over all processes is {global_batch_size}, but there are {num_images} images: a batch "
            "has no image twice."
        )
    batches_per_epoch = num_images // global_batch_size
    accumulation = min(gradient_accumulation_steps, batches_per_epoch)
    if accumulation < gradient_accumulation_steps:
        logger.warning(
            f"`gradient_accumulation_steps` is {gradient_accumulation_steps}, but an epoch has {batches_per_epoch} "
            f"batches: a step sees {accumulation * global_batch_size} images."
        )
    return batches_per_epoch, accumulation


def make_dataloader(
    dataset: torch.utils.data.Dataset, batch_size: int, num_workers: int, device: torch.device
) -> torch.utils.data.DataLoader:
    """
    Batches in the order of the data set, which shuffles itself; those at the end that are not full are left out.

    Args:
        dataset: An `ImageDataset`.
        batch_size: Images of one process and forward pass.
        num_workers: Processes that load images; they live as long as this is iterated over.
        device: Where the images go.
    """
    return torch.utils.data.DataLoader(
        dataset,
        batch_size,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
    )


def seeded_batches(
    dataloader: torch.utils.data.DataLoader, seed: int, step: int, steps_per_epoch: int, batches_per_step: int
) -> Iterator[tuple[tuple[int, int, int], list[torch.Tensor]]]:
    """
    The batches from an optimizer step on, epoch after epoch without end, each with the seed of its randomness.

    Args:
        dataloader: As accelerate prepared it, of a data set with `set_epoch`.
        seed: Seed of the run.
        step: Optimizer steps that are done.
        steps_per_epoch: Optimizer steps of an epoch.
        batches_per_step: Forward passes of an optimizer step; the last one of an epoch may have fewer.

    Yields:
        (seed, epoch, number of the batch in the epoch), and the batch.
    """
    epoch, steps_done = divmod(step, steps_per_epoch)
    batches_done = steps_done * batches_per_step
    while True:
        batches = skip_first_batches(dataloader, batches_done) if batches_done else dataloader
        batches.set_epoch(epoch)  # type: ignore[union-attr]
        for index, batch in enumerate(batches, start=batches_done):
            yield (seed, epoch, index), batch
        epoch, batches_done = epoch + 1, 0


def training_batch(
    images: torch.Tensor,
    noise_scheduler: EtaDDIMScheduler,
    seed: Sequence[int],
    accelerator: Accelerator,
    noise_offset: float = 0.0,
    label_dropout: float = 0.0,
) -> TrainingBatch:
    """
    Draws timesteps, noise and dropped labels for the images of one forward pass.

    Args:
        images: x_0 of this process, (B, C, H, W), float32 in [-1, 1]; B is the same in all processes.
        noise_scheduler: Its config says what the target is: noise, image or velocity.
        seed: Numbers, each at least 0, on which alone depends what is drawn.
        accelerator: Says which share of what is drawn for all processes is this one's.
        noise_offset: Standard deviation of noise that an image has as a whole in each channel, beside that of its
            pixels; not negative.
        label_dropout: Share of the labels and conditions that are dropped, in [0, 1).
    """
    generator = torch.Generator(images.device).manual_seed(mixed(seed))
    batch, rank = len(images), accelerator.process_index
    mine = slice(rank * batch, (rank + 1) * batch)
    total = batch * accelerator.num_processes
    noise = torch.randn((total, *images.shape[1:]), generator=generator, device=images.device)[mine]
    timesteps = torch.randint(len(noise_scheduler), (total,), generator=generator, device=images.device)[mine]
    is_dropped = torch.rand(total, generator=generator, device=images.device)[mine] < label_dropout
    if noise_offset:
        offsets = torch.randn((total, images.shape[1], 1, 1), generator=generator, device=images.device)[mine]
        noise = noise + noise_offset * offsets

    return TrainingBatch(*noised(images, noise, timesteps, noise_scheduler), is_dropped)


def with_condition(
    noisy_images: torch.Tensor, conditions: Sequence[torch.Tensor], is_dropped: torch.Tensor | None = None
) -> torch.Tensor:
    """
    What the model takes: x_t, and after it the channels of the condition, if there is one.

    Args:
        noisy_images: x_t, (B, C, H, W).
        conditions: None or one, (B, C', H, W) in [-1, 1].
        is_dropped: Where the condition is 0, (B,), bool.
    """
    if not conditions:
        return noisy_images
    condition = conditions[0]
    if is_dropped is not None:
        condition = condition.masked_fill(is_dropped.view(-1, 1, 1, 1), 0)
    return torch.cat([noisy_images, condition], dim=1)


def noised(
    images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, noise_scheduler: EtaDDIMScheduler
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t, t, and what the model should return for them: noise, image or velocity."""
    noisy_images = noise_scheduler.add_noise(images, noise, timesteps)
    target = noise
    if noise_scheduler.config.prediction_type == "sample":
        target = images
    elif noise_scheduler.config.prediction_type == "v_prediction":
        target = noise_scheduler.get_velocity(images, noise, timesteps)
    return noisy_images, timesteps, target


def loss_weights(noise_scheduler: EtaDDIMScheduler, snr_gamma: float | None = None) -> torch.Tensor:
    """
    Weight of the squared error at each timestep, shape (T,). Min-SNR-gamma (https://arxiv.org/abs/2303.09556) is
    min(SNR, gamma) in terms of x_0, written for what the model predicts; at zero SNR 1 for epsilon, 0 for x_0 and v.

    Args:
        noise_scheduler: The noise levels, and what the model predicts.
        snr_gamma: Positive; without it all weights are 1.
    """
    timesteps = torch.arange(len(noise_scheduler))
    if snr_gamma is None:
        return torch.ones(len(timesteps))
    snr = compute_snr(noise_scheduler, timesteps)
    if noise_scheduler.config.prediction_type == "epsilon":
        return (snr_gamma / snr).clamp(max=1)
    if noise_scheduler.config.prediction_type == "v_prediction":
        return snr.clamp(max=snr_gamma) / (snr + 1)
    return snr.clamp(max=snr_gamma)


def mixed(seed: Sequence[int]) -> int:
    """One seed, in 0..2^32-1, of several numbers that are at least 0."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])
