# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""One picture as a tensor: the same for training, evaluation, inversion and the pipeline.

This file travels with a model: it needs numpy, Pillow and torch alone.
"""

import contextlib
import functools
import importlib
import io
import math
import os
import threading
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageColor
import PIL.ImageFile
import PIL.ImageOps
import torch
import torch.nn.functional as F

IMAGE_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by number of channels
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
WHITE_LEVEL = 65535  # of 16-bit images
DEEP = "of 16 bits"  # what `ReadImage.notes` has for those
SPARE = 2  # pictures are first reduced, cheaply, to this many times the size that is asked for
LARGE = 2**24  # pixels; pictures of more are decoded one at a time, so that they do not fill the memory
PHOTOMETRIC_INTERPRETATION, BITS_PER_SAMPLE = 262, 258  # tags of TIFF

_decoding_of_large = threading.Lock()


class ReadImage(NamedTuple):
    """A picture, and what a person should be told of how it was taken."""

    pixels: torch.Tensor  # (C, H, W): uint8, or float32 in [0, 1] where 8 bits do not hold it
    notes: tuple[str, ...] = ()


def read_image(
    item: Path | dict,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    *,
    background: str = "white",
    white_level: int = WHITE_LEVEL,
) -> ReadImage:
    """
    Reads an image or an array, turned as its camera says, and scales it so that it just covers a size.

    Args:
        item: Path of an image or a .npy array, or a dictionary with the encoded `bytes` or the `path` of an image.
            A path may be a URL of `fsspec`, as `zip://a.png::photos.zip`.
        channels: 1 (gray), 2 (with alpha), 3 (colour) or 4 (with alpha), to which 8-bit images are converted; if not
            given, gray ones keep 1 and all others get 3. Deep images and arrays have their own number.
        size: Height and width, in pixels; if not given, that of the file.
        background: What is seen through transparent pixels, if alpha is not kept; a colour as of `PIL.ImageColor`.
        white_level: The value of white in 16-bit images, 4095 where a 12-bit camera wrote them.

    Raises:
        OSError, ValueError and others of Pillow: If it cannot be read.
    """
    path = item["path"] if isinstance(item, dict) else item
    if _in_archive(path)[0].lower().endswith(".npy"):
        with _open(item) as file:
            image = _read_array(file, white_level)
        return image if size is None else _scaled(image, size)
    with _open(item) as file, PIL.Image.open(file) as picture:
        if size is not None:
            picture.draft(None, (SPARE * max(size),) * 2)  # a JPEG file is decoded to no more than is needed
        is_large = picture.width * picture.height > LARGE
        with _decoding_of_large if is_large else contextlib.nullcontext():
            tiff = getattr(picture, "tag_v2", {})
            notes = _notes_of_file(picture)
            PIL.ImageOps.exif_transpose(picture, in_place=True)
            if is_deep(picture):
                bits = tiff.get(BITS_PER_SAMPLE, (16,))[0]
                if bits > 16 and picture.mode != "F":
                    raise ValueError(
                        f"of {bits}-bit integers it is not known which is white; save it as a .npy array of floats"
                    )
                is_inverted = tiff.get(PHOTOMETRIC_INTERPRETATION) == 0
                image = deep_pixels(picture, background, min(white_level, 2**bits - 1), is_inverted)
            else:
                image = picture_pixels(picture, channels, background, size and SPARE * max(size))
    image = ReadImage(image.pixels, notes + image.notes)
    return image if size is None else _scaled(image, size, has_alpha=channels in (2, 4))


def is_deep(picture: PIL.Image.Image) -> bool:
    """Whether a picture is gray of more than 8 bits."""
    return picture.mode.startswith(("I", "F"))


def deep_pixels(
    picture: PIL.Image.Image, background: str = "white", white_level: int = WHITE_LEVEL, is_inverted: bool = False
) -> ReadImage:
    """
    A gray picture of 16 bits or floats in [0, 1], as float32 (1, H, W).

    Args:
        picture: Of a mode of Pillow that starts with I or F.
        background, white_level: As of `read_image`.
        is_inverted: Whether `white_level` is that of black.
    """
    values = np.asarray(picture)
    largest = 1 if picture.mode == "F" else white_level
    notes = (DEEP,) * (picture.mode != "F")
    pixels = values.astype(np.float32) / largest
    _check_range(pixels, largest)
    if is_inverted:
        pixels = 1 - pixels
    is_transparent = values == picture.info.get("transparency")
    if is_transparent.any():
        gray: Any = PIL.ImageColor.getcolor(background, "L")
        pixels[is_transparent] = gray / 255
        notes = (*notes, painted_over(background))
    return ReadImage(torch.from_numpy(pixels)[None], notes)


def picture_pixels(
    picture: PIL.Image.Image, channels: int | None = None, background: str = "white", at_least: int | None = None
) -> ReadImage:
    """
    An 8-bit picture as uint8 (C, H, W).

    Args:
        picture: Of any mode of Pillow but those of `is_deep`.
        channels, background: As of `read_image`.
        at_least: If given, the picture is reduced by a whole factor, to sides of no less than this.
    """
    notes: tuple[str, ...] = ()
    is_gray = picture.mode in ("1", "L", "LA", "La")
    if picture.mode in ALPHA_MODES or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    elif picture.mode != "L":
        picture = picture.convert("L" if is_gray else "RGB")
    if at_least is not None and (factor := min(picture.size) // at_least) > 1:
        picture = picture.reduce(factor)
    if picture.mode == "RGBA" and channels not in (2, 4):
        alpha = picture.getchannel("A")
        lowest: Any = alpha.getextrema()[0]
        if lowest < 255:
            notes = (painted_over(background),)
            is_gray = is_gray and len(set(PIL.ImageColor.getrgb(background)[:3])) == 1
            picture = PIL.Image.composite(picture, PIL.Image.new("RGBA", picture.size, background), alpha)
    picture = picture.convert(IMAGE_MODES.get(channels or (1 if is_gray else 3), "RGB"))
    pixels = np.array(picture).reshape(picture.height, picture.width, -1)
    _check_size(pixels)
    return ReadImage(torch.from_numpy(pixels).permute(2, 0, 1), notes)


def _scaled(image: ReadImage, size: tuple[int, int], has_alpha: bool = False) -> ReadImage:
    is_small = any(old < new for old, new in zip(image.pixels.shape[1:], size, strict=True))
    notes = image.notes + ("enlarged",) * is_small
    return ReadImage(scale_to_cover(image.pixels, *size, has_alpha), notes)


def painted_over(background: str) -> str:
    """The note of a transparent picture."""
    return f"transparent, painted over {background}"


def scale_to_cover(image: torch.Tensor, height: int, width: int, has_alpha: bool = False) -> torch.Tensor:
    """
    Scales an image so that it just covers a size, by an antialiased bilinear filter.

    Args:
        image: (C, H, W), uint8 or float32; the result is of the same kind.
        height, width: The size, in pixels. One side of the result has it, the other is as long or longer.
        has_alpha: Whether the last channel is the opacity, by which the colours are weighted then.
    """
    old = image.shape[1:]
    scale = max(height / old[0], width / old[1])
    return scale_to(image, max(height, round(scale * old[0])), max(width, round(scale * old[1])), has_alpha)


def scale_to(image: torch.Tensor, height: int, width: int, has_alpha: bool = False) -> torch.Tensor:
    """Scales an image to a size, as `scale_to_cover` does, whatever becomes of its proportions."""
    if (height, width) == tuple(image.shape[1:]):
        return image.contiguous()
    pixels = image[None].float()
    if has_alpha:
        colours, alpha = pixels[:, :-1], pixels[:, -1:]
        pixels = torch.cat([colours * alpha, alpha], dim=1)
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0]
    if has_alpha:
        pixels[:-1] /= pixels[-1:].clamp(min=1e-6)  # no colour where nothing is seen of it
    return pixels.round().clamp(0, 255).byte() if image.dtype == torch.uint8 else pixels


def center_crop(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The middle of an image (C, H, W) that covers the size."""
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def _open(item: Path | dict) -> IO[bytes]:
    if isinstance(item, dict) and item["bytes"] is not None:
        return io.BytesIO(item["bytes"])
    path = item["path"] if isinstance(item, dict) else item
    if path is None:
        raise ValueError("it is empty")
    name, archive = _in_archive(path)
    if archive:
        return io.BytesIO(_opened(archive, os.stat(archive).st_mtime_ns, os.getpid()).read(name))
    if "://" in str(path):
        with importlib.import_module("fsspec").open(path, "rb") as file:  # which huggingface_hub has
            return io.BytesIO(file.read())
    return open(path, "rb")


def _in_archive(path: Path | str) -> tuple[str, str]:
    """Name and archive of `zip://name::archive`, either of which may hold `::` itself; of other paths no archive."""
    parts = str(path).removeprefix("zip://").split("::") if str(path).startswith("zip://") else []
    for i in range(1, len(parts)):
        if os.path.isfile(archive := "::".join(parts[i:])):
            return "::".join(parts[:i]), archive
    return str(path).rsplit("::", 1)[0], ""


@functools.lru_cache(maxsize=4)
def _opened(archive: str, modified: int, process: int) -> zipfile.ZipFile:
    """A zip archive whose list of files is read once, by each process for itself: they would share the place in it."""
    return zipfile.ZipFile(archive)


def _notes_of_file(picture: PIL.ImageFile.ImageFile) -> tuple[str, ...]:
    """What Pillow leaves out of a file. To be asked before it is decoded."""
    notes = []
    if getattr(picture, "is_animated", False):
        notes.append("of several frames or pages, of which the first is taken")
    decoders = [(tile[0], tile[3]) for tile in picture.tile]
    if not is_deep(picture) and any(
        ";16" in str(kind) or (name.startswith("ppm") and isinstance(kind, tuple) and kind[-1] > 255)
        for name, kind in decoders
    ):
        notes.append("of 16 bits and colour or alpha, of which 8 bits are taken")
    return tuple(notes)


def _read_array(file: IO[bytes], white_level: int) -> ReadImage:
    pixels = np.load(file)
    if pixels.ndim not in (2, 3):
        raise ValueError(f"an array must have the shape (H, W), (H, W, C) or (C, H, W), but has {pixels.shape}")
    if pixels.dtype not in (np.uint8, np.uint16, np.bool_) and pixels.dtype.kind != "f":
        raise ValueError(f"an array must be uint8, uint16, bool, or floats in [0, 1], but is {pixels.dtype}")
    _check_size(pixels)
    notes: tuple[str, ...] = ()
    if pixels.ndim == 3 and pixels.shape[0] < min(pixels.shape[1:]):
        pixels, notes = pixels.transpose(1, 2, 0), ("arrays (C, H, W)",)
    if pixels.dtype != np.uint8:
        largest = {np.dtype(np.uint16): white_level}.get(pixels.dtype, 1)
        notes += (DEEP,) * (pixels.dtype == np.uint16)
        pixels = pixels.astype(np.float32) / largest
        _check_range(pixels, largest)
    return ReadImage(
        torch.from_numpy(np.ascontiguousarray(pixels)).reshape(*pixels.shape[:2], -1).permute(2, 0, 1), notes
    )


def _check_size(pixels: np.ndarray):
    if pixels.size == 0:
        raise ValueError(f"it has no pixels, but the shape {pixels.shape}")


def _check_range(pixels: np.ndarray, largest: int):
    """Refuses pixels, divided by the largest value that they may have, that are not in [0, 1]."""
    _check_size(pixels)
    low, high = largest * pixels.min(), largest * pixels.max()
    if not (low >= 0 and pixels.max() <= 1) or math.isnan(low):
        raise ValueError(f"pixels must be in [0, {largest}], but go from {low:g} to {high:g}")
