# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Image files as tensors, for training and evaluation: decoding without loss, and scaling to a size."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F

IMAGE_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by number of channels


def decode_image(item: Path | dict, channels: int | None = None) -> torch.Tensor:
    """
    An image as a tensor (C, H, W): uint8, or float32 in [0, 1] where 8 bits do not hold it.

    Args:
        item: Path of an image or a .npy array, or a dictionary with the encoded `bytes` or the `path` of an image.
        channels: 1, 2, 3 or 4, to which 8-bit images are converted; if not given, gray ones keep 1 and all others get
            3. Deep images and arrays have their own number.

    Raises:
        OSError, ValueError and others of Pillow: If it cannot be read without loss.
    """
    if isinstance(item, Path) and item.suffix.lower() == ".npy":
        pixels = np.load(item)
        if pixels.ndim not in (2, 3):
            raise ValueError(f"an array must have the shape (H, W) or (H, W, C), but has {pixels.shape}")
        return _as_image(pixels, np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1)
    source = item if isinstance(item, Path) else io.BytesIO(item["bytes"]) if item["bytes"] else item["path"]
    with PIL.Image.open(source) as image:
        is_deep = image.mode.startswith(("I", "F"))
        decoders = [(tile[0], tile[3]) for tile in image.tile]
        is_cut = any(";16" in str(kind) or (name.startswith("ppm") and _largest(kind) > 255) for name, kind in decoders)
        if not is_deep and is_cut:
            raise ValueError("Pillow would cut its 16 bits of colour to 8; save it as a .npy array (H, W, C) of uint16")
        PIL.ImageOps.exif_transpose(image, in_place=True)
        if is_deep:  # 16-bit or float gray
            if image.mode == "I" and image.format == "TIFF":
                raise ValueError("of 32-bit integers it is not known which is white; save it as a .npy array of floats")
            return _as_image(np.asarray(image), 1 if image.mode == "F" else 65535)
        gray = channels is None and image.mode in ("1", "L", "LA")
        return _as_image(np.array(image.convert("L" if gray else IMAGE_MODES.get(channels or 3, "RGB"))), 255)


def _largest(arguments: Any) -> int:
    """The largest value of a portable pixmap, from the arguments of Pillow's decoder."""
    return int(arguments[-1]) if isinstance(arguments, tuple) else 255


def _as_image(pixels: np.ndarray, largest: int) -> torch.Tensor:
    """Pixels (H, W) or (H, W, C) in [0, largest] as a tensor (C, H, W)."""
    if pixels.size == 0:
        raise ValueError(f"it has no pixels, but the shape {pixels.shape}")
    if largest != 255:
        pixels = pixels.astype(np.float32) / largest
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"pixels must be in [0, 1], but go from {pixels.min()} to {pixels.max()}")
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


def scale_to_cover(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    Scales an image so that it just covers a size, by an antialiased bilinear filter.

    Args:
        image: (C, H, W), uint8 or float32; the result is of the same kind.
        height, width: The size, in pixels. One side of the result has it, the other is as long or longer.
    """
    old = image.shape[1:]
    scale = max(height / old[0], width / old[1])
    size = (max(height, round(scale * old[0])), max(width, round(scale * old[1])))
    if size == tuple(old):
        return image.contiguous()
    pixels = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return pixels.round().clamp(0, 255).byte() if image.dtype == torch.uint8 else pixels
