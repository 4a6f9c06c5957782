# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Images in and out, as tensors, and the random numbers of an image."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from diffusers.utils import logging, numpy_to_pil

from ..image_files import DEEP, IMAGE_MODES, ReadImage, deep_pixels, is_deep, picture_pixels
from ..validation import check_integer

logger = logging.get_logger(__name__)


def to_tensor(name: str, image: Any, channels: int) -> torch.Tensor:
    """Images as a float32 tensor (B, C, H, W) in [0, 1]."""
    images = image if isinstance(image, list) else [image]
    if images and all(isinstance(i, PIL.Image.Image) for i in images):
        if len({i.size for i in images}) > 1:
            raise ValueError(f"`{name}` must hold images of one size, but has {sorted({i.size for i in images})}.")
        read = [_read_picture(name, i, channels) for i in images]
        notes = [note for picture in read for note in picture.notes if note != DEEP]
        for note in sorted(set(notes)):
            logger.warning(f"`{name}`: {notes.count(note)} {note}.")
        pixels = [i.pixels / 255 if i.pixels.dtype == torch.uint8 else i.pixels for i in read]
        return torch.stack([p.expand(channels, -1, -1) for p in pixels])
    if isinstance(image, np.ndarray) and image.ndim == 4 and image.dtype.kind in "fb":
        image = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)).permute(0, 3, 1, 2)
    if isinstance(image, torch.Tensor) and image.dtype == torch.bool:
        image = image.float()
    if not isinstance(image, torch.Tensor) or image.ndim != 4 or not image.is_floating_point():
        is_array = isinstance(image, np.ndarray | torch.Tensor)
        kind = f"{image.dtype} of shape {tuple(image.shape)}" if is_array else repr(image)
        raise TypeError(
            f"`{name}` must be a PIL image, a list of them, or a floating point array (B, H, W, C) or tensor (B, C, H, "
            f"W), but is {kind}."
        )
    if image.shape[1] != channels or not len(image):
        raise ValueError(
            f"`{name}` must hold at least one image of {channels} channels, but has the shape {tuple(image.shape)}."
        )
    if not ((image >= 0) & (image <= 1)).all():
        raise ValueError(f"`{name}` must be in [0, 1], but is in [{image.min():.4g}, {image.max():.4g}].")
    return image.float()


def _read_picture(name: str, picture: PIL.Image.Image, channels: int) -> ReadImage:
    """A picture as the training takes a file of it."""
    if channels not in IMAGE_MODES or (is_deep(picture) and channels not in (1, 3)):
        raise ValueError(f"`{name}` of mode {picture.mode} cannot be turned into {channels} channels; use an array.")
    picture = PIL.ImageOps.exif_transpose(picture)
    try:
        return deep_pixels(picture) if is_deep(picture) else picture_pixels(picture, channels)
    except ValueError as error:
        raise ValueError(f"`{name}` of mode {picture.mode} cannot be taken: {error}; use an array.") from error


def image_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """
    One CPU generator for each image, seeded by (seed, index) alone: image k is the same on any device, in any batch.

    Args:
        seed (`int`): Seed of the whole set of images, at least 0.
        indices (iterable of `int`): Numbers of the images in the set, each at least 0.

    Raises:
        ValueError, TypeError: If one of them is no such integer.
    """
    check_integer("seed", seed, 0)
    if not isinstance(indices, Iterable):
        raise TypeError(f"`indices` must be integers, but are {indices!r}.")
    indices = list(indices)
    for k in indices:
        check_integer("indices", k, 0)
    states = [np.random.SeedSequence([seed, k]).generate_state(1, np.uint64) for k in indices]
    return [torch.Generator().manual_seed(int(state[0]) >> 1) for state in states]


def to_labels(class_labels: Any) -> torch.Tensor:
    try:
        labels = torch.as_tensor(class_labels)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`class_labels` must be a list of integers, but are {class_labels!r}.") from None
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"`class_labels` must be a list of integers, but are {class_labels!r}.")
    return labels.long()


def from_latents(latents: torch.Tensor, output_type: str) -> Any:
    """The sampler's x_0 as a call's `output_type` says."""
    if output_type == "latent":
        return latents
    images = (latents / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    array = images.permute(0, 2, 3, 1).cpu().numpy()
    return array if output_type == "np" else numpy_to_pil(array)
