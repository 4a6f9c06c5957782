# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The images of `train_unconditional.py`, which describes the arguments that are read here."""

import argparse
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import psutil
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".npy")
IMAGE_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by number of channels


def find_images(args: argparse.Namespace) -> tuple[Sequence[Path | dict], list[int], list[str] | None]:
    """The images of the folder or data set, as paths or encoded bytes, the number of the class of each, the classes."""
    if args.train_data_dir is not None:
        files = Path(args.train_data_dir).rglob("*")
        paths = sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir())
        if not paths:
            raise ValueError(f"`train_data_dir` holds no images: {args.train_data_dir}")
        if not args.class_conditional:
            return paths, [0] * len(paths), None
        parts = [path.relative_to(args.train_data_dir).parts for path in paths]
        if min(map(len, parts)) < 2:
            raise ValueError(
                f"`class_conditional` needs each image in a sub-folder of its class, not {min(parts, key=len)[0]}."
            )
        names = sorted({part[0] for part in parts})
        return paths, [names.index(part[0]) for part in parts], names

    name, config_name = args.dataset_name, args.dataset_config_name
    try:
        data = datasets.load_dataset(name, config_name, cache_dir=args.cache_dir, split="train")
    except Exception as error:
        raise ValueError(f"`dataset_name` {name!r} cannot be loaded: {error}") from error
    for name in ["image_column"] + ["label_column"] * args.class_conditional:
        if getattr(args, name) not in data.column_names:
            raise ValueError(f"`{name}` must be one of {data.column_names}, but is {getattr(args, name)!r}.")
    try:
        images = data.cast_column(args.image_column, datasets.Image(decode=False))[args.image_column]
    except Exception as error:
        raise ValueError(f"`image_column` {args.image_column!r} holds no images: {error}") from error
    if not args.class_conditional:
        return images, [0] * len(images), None
    labels = list(data[args.label_column])
    feature = data.features[args.label_column]
    is_class = isinstance(feature, datasets.ClassLabel)
    for index, label in enumerate(labels):
        if label is None or (is_class and not 0 <= label < len(feature.names)):
            raise ValueError(
                f"`{args.label_column}` of number {index} of the data set is {label!r}, which is no class."
            )
    if is_class:
        return images, labels, feature.names
    values = sorted(set(labels))
    return images, [values.index(label) for label in labels], [str(value) for value in values]


class ImageDataset(torch.utils.data.Dataset):
    """
    All images, scaled to cover `resolution`: decoded once, which shows that each can be read, and kept in memory if
    they fit, 8-bit images as bytes, others as float.

    An item is one of them, cropped and maybe mirrored, float32 of shape (C, *resolution) in [-1, 1], and the number of
    its class. Order, crops and flips are drawn from the seed and the epoch.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        items: Sequence[Path | dict],
        labels: Sequence[int],
        class_names: list[str] | None = None,
    ):
        self.items, self.labels, self.class_names = items, labels, class_names
        self.resolution, self.center_crop, self.random_flip = args.resolution, args.center_crop, args.random_flip
        self.given_channels, self.seed = args.channels, args.seed
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        limit = psutil.virtual_memory().available / 2 / processes
        if args.image_cache_gb is not None:
            limit = args.image_cache_gb * 1e9

        self.images: list[torch.Tensor] | None = []
        size, seen = 0, dict[int, str]()
        is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
        with ThreadPoolExecutor() as pool:
            images = pool.map(self._load, range(len(self.items)))
            bar = tqdm(images, "Decoding", total=len(self.items), leave=False, disable=not is_first)
            for index, image in enumerate(bar):
                seen.setdefault(len(image), self._name(index))
                size += image.nbytes
                if size > limit:
                    self.images = None
                elif self.images is not None:
                    self.images.append(image)
        self.channels = args.channels or max(seen)
        for channels, name in seen.items():
            if channels != self.channels and (channels, self.channels) != (1, 3):
                raise ValueError(f"The training image {name} has {channels} channels, not {self.channels}.")
        self.set_epoch(0)

    def set_epoch(self, epoch: int):
        """Draws the order, the crops and the flips. Called by accelerate at the start of each epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        self.order = rng.permutation(len(self.items))
        self.draws = rng.random((len(self.items), 3))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        index = self.order[position]
        image = self._load(index) if self.images is None else self.images[index]
        (height, width), (top, left, flip) = self.resolution, self.draws[index]
        top, left = (
            space // 2 if self.center_crop else int((space + 1) * draw)
            for space, draw in ((image.shape[1] - height, top), (image.shape[2] - width, left))
        )
        image = image[:, top : top + height, left : left + width].expand(self.channels, -1, -1)
        if self.random_flip and flip < 0.5:
            image = image.flip(-1)
        scale = 255 if image.dtype == torch.uint8 else 1
        return image.float() / scale * 2 - 1, self.labels[index]

    def _name(self, index: int) -> str:
        item = self.items[index]
        return str(item) if isinstance(item, Path) else (item or {}).get("path") or f"number {index} of the data set"

    def _load(self, index: int) -> torch.Tensor:
        """Decodes an image and scales it so that it just covers the resolution."""
        try:
            image = _decode(self.items[index], self.given_channels)
        except Exception as error:
            raise ValueError(f"The training image {self._name(index)} cannot be read: {error}") from error
        scale = max(new / old for new, old in zip(self.resolution, image.shape[1:], strict=True))
        if scale == 1:
            return image.contiguous()
        size = [max(new, round(scale * old)) for new, old in zip(self.resolution, image.shape[1:], strict=True)]
        pixels = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
        return pixels.round().clamp(0, 255).byte() if image.dtype == torch.uint8 else pixels


def _decode(item: Path | dict, channels: int | None) -> torch.Tensor:
    """An image file as (C, H, W): uint8, or float32 in [0, 1] where 8 bits do not hold it."""
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
