# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of the page: read from files, put into grids, and saved with what made them."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers.utils import make_image_grid, numpy_to_pil

from .. import __version__
from ..image_files import center_crop, read_image
from .samplers import Model, Settings

SHOWN_SIZE = 512  # pixels of a side of a shown picture, about


def read_picture(path: str | Path, shape: tuple[int, int, int]) -> torch.Tensor:
    """
    A picture as a model sees it: scaled to its size, the middle of what is too long, in 8 bits.

    Args:
        path: A file of any kind that Pillow reads.
        shape: Channels, height and width of the model's images.

    Returns:
        (1, C, H, W), float32 in [0, 1].

    Raises:
        ValueError: If it cannot be read.
    """
    channels, height, width = shape
    try:
        pixels = read_image(Path(path), channels, (height, width)).pixels
    except Exception as error:
        # Pillow raises errors of many kinds for broken files; some name the copy on the server
        reason = str(error).replace(str(path), Path(path).name)
        raise ValueError(f"The picture {Path(path).name} cannot be read: {reason}") from error
    if len(pixels) != channels:  # gray of more than 8 bits keeps its one channel
        pixels = torch.cat([pixels.expand(3, -1, -1), torch.ones_like(pixels)])[:channels]
    if pixels.dtype != torch.uint8:
        pixels = (255 * pixels).round().byte()
    return center_crop(pixels, height, width)[None].float() / 255


def read_mask(layers: list[Any], height: int, width: int) -> torch.Tensor | None:
    """
    What was drawn upon a picture, as a mask of the model's size.

    Args:
        layers: Arrays (H, W, 4) of uint8, transparent where nothing was drawn.
        height, width: Size of the mask.

    Returns:
        (1, 1, height, width) of 0 and 1, where at least half of a pixel was drawn upon; None if nothing was drawn.
    """
    drawn = [torch.from_numpy(layer[..., 3].copy()).float() / 255 for layer in layers]
    if not drawn:
        return None
    alpha = torch.stack(drawn).amax(0)[None, None]
    mask = (torch.nn.functional.interpolate(alpha, (height, width), mode="area") >= 0.5).float()
    return mask if mask.any() else None


def grid(images: torch.Tensor, columns: int | None = None, size: int = SHOWN_SIZE) -> PIL.Image.Image:
    """
    Images (B, C, H, W) in [0, 1] as one picture, as square as may be, its pixels enlarged to about `size` in width.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    blank = images.new_zeros(rows * columns - len(images), *images.shape[1:])
    pictures = numpy_to_pil(torch.cat([images, blank]).permute(0, 2, 3, 1).numpy())
    picture = make_image_grid(pictures, rows, columns)
    scale = max(1, round(size / picture.width))
    return picture.resize((scale * picture.width, scale * picture.height), PIL.Image.Resampling.NEAREST)


def steps_of_strip(num_inference_steps: int, num_shown: int = 10) -> list[int]:
    """The steps that `strip` shows, from 0 for the first to the last."""
    return torch.linspace(0, num_inference_steps - 1, min(num_shown, num_inference_steps)).round().long().tolist()


def strip(predictions: torch.Tensor, num_images: int = 4, num_shown: int = 10) -> PIL.Image.Image:
    """The first images of (N, B, C, H, W), one in a row, at steps from the first to the last."""
    steps = steps_of_strip(len(predictions), num_shown)
    chosen = predictions[steps, :num_images].transpose(0, 1)
    return grid(chosen.flatten(0, 1), columns=len(steps), size=2 * SHOWN_SIZE)


def noise(latents: torch.Tensor) -> torch.Tensor:
    """Latents as a picture, in which 3 standard deviations are black and white."""
    return (latents / 6 + 0.5).clamp(0, 1)


def with_settings(
    picture: PIL.Image.Image, model: Model, settings: Settings, code: str, /, **others: Any
) -> PIL.Image.Image:
    """The picture with the settings, and others, and the code in what a PNG file keeps as its text."""
    picture.info["parameters"] = json.dumps({"model": model.name, **asdict(settings), **others})
    picture.info["python"] = code
    picture.info["Software"] = f"ddim-scheduler {__version__}"
    return picture
