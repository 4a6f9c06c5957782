# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Weights to start from: those of a saved UNet, with the classes of the run, without a change of what it does."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import SchedulerMixin, UNet2DModel

from .. import EtaDDIMPipeline, EtaDDIMScheduler
from .model import check_unet, num_class_embeds, sample_size

logger = logging.getLogger(__name__)

# keys of a scheduler's config that training hangs on, and the options that say them
OPTIONS = {
    "prediction_type": "prediction_type",
    "num_train_timesteps": "ddpm_num_steps",
    "beta_schedule": "ddpm_beta_schedule",
    "rescale_betas_zero_snr": "rescale_betas_zero_snr",
}


def pretrained_unet(
    pretrained_model_name_or_path: str | Path,
    resolution: Sequence[int],
    channels: int,
    num_classes: int | None = None,
    *,
    condition_channels: int = 0,
    noise_scheduler: EtaDDIMScheduler,
    device: str | torch.device = "cpu",
) -> UNet2DModel:
    """
    A UNet with the weights of a saved one, in float32. One forward pass shows that it can be trained.

    Args:
        pretrained_model_name_or_path: Folder or Hub id of a pipeline, or of a UNet2DModel alone.
        resolution, channels, num_classes: As of `build_unet`. The resolution may be another one than the UNet had, and
            so may the number of classes: each new class starts as what the UNet has for "no class", its last one, or
            without classes as nothing.
        condition_channels: As of `build_unet`.
        noise_scheduler: Of this run. That of a pipeline must predict the same and have the same noise levels.
        device: Where the network is tried, and stays.

    Raises:
        ValueError: If there is no such model, its channels are others, its scheduler is another one, or it fails.
    """
    name = f"`pretrained_model_name_or_path` {str(pretrained_model_name_or_path)!r}"
    try:
        unet, scheduler = _load(pretrained_model_name_or_path)
    except Exception as error:
        raise ValueError(f"{name} cannot be loaded: {error}") from error
    if scheduler is not None:
        _check_scheduler(scheduler, noise_scheduler, name)
    else:
        logger.warning(
            f"{name} is a network without a scheduler: nothing shows whether it predicts "
            f"{noise_scheduler.config.prediction_type!r}, at the noise levels of this run."
        )
    if unet.config.sample_size != sample_size(resolution):
        logger.info(f"{name} had the `sample_size` {unet.config.sample_size}; this run has {[*resolution]}.")
    unet.register_to_config(sample_size=sample_size(resolution))
    if unet.config.class_embed_type is None:
        _set_classes(unet, num_classes, name)
    num_train_timesteps = noise_scheduler.config.num_train_timesteps
    return check_unet(unet.to(device), name, resolution, channels, num_classes, num_train_timesteps, condition_channels)


def _load(path: str | Path) -> tuple[UNet2DModel, SchedulerMixin | None]:
    """The UNet, and the scheduler of a pipeline."""
    try:
        EtaDDIMPipeline.load_config(path)
    except OSError:  # no model_index.json
        return UNet2DModel.from_pretrained(path).float(), None
    pipeline = EtaDDIMPipeline.from_pretrained(path)
    return pipeline.unet.float(), pipeline.scheduler


def _check_scheduler(scheduler: SchedulerMixin, noise_scheduler: EtaDDIMScheduler, name: str):
    """Refuses to train with other noise levels or another target than the weights know."""
    theirs, ours = scheduler.config, noise_scheduler.config
    wrong = [
        f"`{option}` is {ours[key]!r}, but {theirs[key]!r} there"
        for key, option in OPTIONS.items()
        if theirs.get(key, ours[key]) != ours[key]
    ]
    if wrong:
        raise ValueError(f"{name} was trained in another way: {'; '.join(wrong)}.")
    difference = (scheduler.alphas_cumprod - noise_scheduler.alphas_cumprod).abs().max()
    if difference > 1e-3:
        betas = {key: theirs.get(key) for key in ("beta_start", "beta_end", "trained_betas")}
        raise ValueError(f"{name} was trained with betas that no option gives: {betas}.")


@torch.no_grad()
def _set_classes(unet: UNet2DModel, num_classes: int | None, name: str):
    """Gives the network another number of classes, all of which are at first what it has for no class."""
    former, number = unet.config.num_class_embeds, num_class_embeds(num_classes)
    if number == former:
        return
    linear = unet.time_embedding.linear_2
    no_class = torch.zeros_like(linear.bias) if former is None else unet.class_embedding.weight[-1]
    if number is None:  # the embedding of the class is added to what this layer returns
        linear.bias += no_class
        unet.class_embedding = None
    else:
        unet.class_embedding = torch.nn.Embedding(number, len(no_class), _weight=no_class.repeat(number, 1))
    unet.register_to_config(num_class_embeds=number)
    logger.info(f"{name} had {former or 'no'} classes, with `no class`; this run has {number or 'none'}.")
