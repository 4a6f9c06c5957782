# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The network that is trained: built from options, or from a config, which is tried before anything is written."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DModel


def build_unet(
    resolution: Sequence[int],
    channels: int,
    num_classes: int | None = None,
    *,
    block_out_channels: Sequence[int] = (128, 256, 256, 256),
    layers_per_block: int = 2,
    attention_resolutions: Sequence[int] | None = None,
    condition_channels: int = 0,
) -> UNet2DModel:
    """
    A UNet with random weights, in the global generator's state.

    Args:
        resolution: Height and width of the images, multiples of 2^(levels - 1).
        channels: Channels of the images.
        num_classes: If given, the network has one embedding more than there are classes, whose number, the last, means
            no class.
        block_out_channels: The widths of the levels, multiples of 8 where there is attention, at least 8 in the last.
        layers_per_block: Residual blocks per level.
        attention_resolutions: Heights of the maps that have attention; as `attention_heights` chooses if not given.
        condition_channels: Channels of a condition, which the network takes after those of the images.

    Raises:
        ValueError: If `resolution` or `block_out_channels` are no such numbers, or no level has such a height.
    """
    heights = level_heights(resolution, len(block_out_channels))
    if attention_resolutions is None:
        attention_resolutions = attention_heights(resolution, len(block_out_channels))
    check_levels(resolution, block_out_channels, attention_resolutions)
    attention = [height in attention_resolutions for height in heights]
    return UNet2DModel(
        sample_size=sample_size(resolution),
        in_channels=channels + condition_channels,
        out_channels=channels,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        norm_num_groups=math.gcd(32, *block_out_channels),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        num_class_embeds=num_class_embeds(num_classes),
    )


def check_levels(resolution: Sequence[int], block_out_channels: Sequence[int], attention_resolutions: Sequence[int]):
    """
    Refuses what `build_unet` cannot build.

    Args:
        resolution, block_out_channels, attention_resolutions: As of `build_unet`.

    Raises:
        ValueError: As `build_unet` does.
    """
    num_levels = len(block_out_channels)
    if not _divides(2 ** (num_levels - 1), resolution):
        most = max(n for n in range(1, num_levels) if _divides(2 ** (n - 1), resolution))
        raise ValueError(
            f"`resolution` must be a multiple of {2 ** (num_levels - 1)} for {num_levels} levels in "
            f"`block_out_channels`, but is {[*resolution]}; the first {most} would do, --block_out_channels "
            f"{' '.join(map(str, block_out_channels[:most]))}."
        )
    heights = level_heights(resolution, num_levels)
    if not set(attention_resolutions) <= set(heights):
        raise ValueError(
            f"`attention_resolutions` must be of {heights}, the heights of the levels, but is "
            f"{[*attention_resolutions]}."
        )
    if block_out_channels[-1] < 8:
        raise ValueError(
            f"`block_out_channels` must end with at least 8, for the attention of the middle block, but is "
            f"{[*block_out_channels]}."
        )
    with_attention = [w for h, w in zip(heights, block_out_channels, strict=True) if h in attention_resolutions]
    if any(width % 8 for width in with_attention):
        raise ValueError(
            f"`block_out_channels` {[*block_out_channels]} must be multiples of 8 where there is attention: "
            f"{[*attention_resolutions]}."
        )


def level_heights(resolution: Sequence[int], num_levels: int) -> list[int]:
    """Heights of the maps of a UNet, each half of the one before."""
    return [resolution[0] // 2**level for level in range(num_levels)]


def attention_heights(resolution: Sequence[int], num_levels: int) -> list[int]:
    """
    Where a UNet has attention if nobody says it: at the height nearest to 16, that of the papers.

    Args:
        resolution: Height and width of the images.
        num_levels: Number of levels of the UNet.

    Returns:
        One height, or none if all are 23 or more, where attention is slow, or 11 or less.
    """
    return [height for height in level_heights(resolution, num_levels) if 16 / 2**0.5 < height <= 16 * 2**0.5]


def unet_from_config(
    model_config_name_or_path: str | Path,
    resolution: Sequence[int],
    channels: int,
    num_classes: int | None = None,
    *,
    condition_channels: int = 0,
    num_train_timesteps: int = 1000,
    device: str | torch.device = "cpu",
) -> UNet2DModel:
    """
    A UNet of a config at another resolution and with other classes, with random weights. One forward pass shows that
    it can be trained and sampled.

    Args:
        model_config_name_or_path: Folder, file or Hub id of the config of a `UNet2DModel`.
        resolution, channels, num_classes, condition_channels: As of `build_unet`.
        num_train_timesteps: Number of noise levels T: the network is tried at the timesteps 0 and T - 1.
        device: Where the network is tried, and stays.

    Raises:
        ValueError: If the config makes no network of so many channels, or its output for such images is an error, of
            another shape, or not finite.
    """
    name = f"`model_config_name_or_path` {str(model_config_name_or_path)!r}"
    changes = {"sample_size": sample_size(resolution), "num_class_embeds": num_class_embeds(num_classes)}
    try:
        config = UNet2DModel.load_config(model_config_name_or_path)
        unet = UNet2DModel.from_config({**config, **changes}).to(device)
    except Exception as error:  # whatever a wrong value makes of the layers
        raise ValueError(f"{name} makes no UNet2DModel: {error}") from error
    return check_unet(unet, name, resolution, channels, num_classes, num_train_timesteps, condition_channels)


def check_unet(
    unet: UNet2DModel,
    name: str,
    resolution: Sequence[int],
    channels: int,
    num_classes: int | None,
    num_train_timesteps: int,
    condition_channels: int = 0,
) -> UNet2DModel:
    """
    Returns a network that can be trained and sampled, and refuses others, by one forward pass.

    Args:
        unet: The network.
        name: What it is called in the message.
        resolution, channels, num_classes, condition_channels: As of `build_unet`.
        num_train_timesteps: Number of noise levels T.

    Raises:
        ValueError: If it has other channels or classes, or its output is an error, of another shape, or not finite.
    """
    if unet.config.in_channels != channels + condition_channels:
        condition = f" and their conditions {condition_channels}" if condition_channels else ""
        raise ValueError(
            f"The UNet takes {unet.config.in_channels} channels, but the images have {channels}{condition}."
        )
    if unet.config.out_channels != channels:
        raise ValueError(
            f"The UNet returns {unet.config.out_channels} channels, but the images have {channels}: learned "
            "variances are not trained."
        )
    if num_classes is None and unet.config.class_embed_type is not None:
        raise ValueError(
            f"{name} has the `class_embed_type` {unet.config.class_embed_type!r}, which needs `class_conditional`."
        )
    _try(unet, name, resolution, num_classes, num_train_timesteps)
    return unet


@torch.no_grad()
def _try(unet: UNet2DModel, name: str, resolution: Sequence[int], num_classes: int | None, num_train_timesteps: int):
    """Refuses a network that cannot compute a finite output at the first and the last timestep."""
    # of a generator of its own, so that the run draws the same numbers with and without this
    images = torch.randn(2, unet.config.in_channels, *resolution, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, num_train_timesteps - 1], device=unet.device)
    labels = None if num_classes is None else torch.tensor([0, num_classes], device=unet.device)
    unet.eval()
    try:
        output = unet(images.to(unet.device), timesteps, labels).sample
    except Exception as error:
        multiple = 2 ** (len(unet.config.block_out_channels) - 1)
        if not _divides(multiple, resolution):
            raise ValueError(
                f"`resolution` must be a multiple of {multiple} for the {len(unet.config.block_out_channels)} levels "
                f"of {name}, but is {[*resolution]}."
            ) from error
        raise ValueError(
            f"{name} makes a network that fails for images of the `resolution` {[*resolution]} at the timesteps "
            f"{timesteps.tolist()}: {error}"
        ) from error
    finally:
        unet.train()
    if output.shape[2:] != images.shape[2:]:
        raise ValueError(
            f"{name} makes a network whose output has the size {[*output.shape[2:]]}, not {[*resolution]}."
        )
    is_finite = output.isfinite().flatten(1).all(1)
    if not is_finite.all():
        raise ValueError(
            f"{name} makes a network whose output is not finite at the timesteps {timesteps[~is_finite].tolist()}, "
            f"with the `time_embedding_type` {unet.config.time_embedding_type!r}."
        )


def _divides(number: int, resolution: Sequence[int]) -> bool:
    return not any(side % number for side in resolution)


def sample_size(resolution: Sequence[int]) -> int | tuple[int, int]:
    """As the config of a UNet has it."""
    height, width = resolution
    return height if height == width else (height, width)


def num_class_embeds(num_classes: int | None) -> int | None:
    """As the config of a UNet has it: one more than there are classes, for no class."""
    return None if num_classes is None else num_classes + 1
