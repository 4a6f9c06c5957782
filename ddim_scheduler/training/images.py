# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Training images: where they are, what their classes are, and a data set of them that is the same for every run.

Names of arguments are those of the options of the training command, which the messages of errors use as well.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..command_line import import_extra
from ..image_files import decode_image, scale_to_cover

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".npy")


class FoundImages(NamedTuple):
    """Images that are not decoded yet: paths, or dictionaries with encoded `bytes` or a `path`, as of `datasets`."""

    items: Sequence[Path | dict]
    labels: Sequence[int]  # the number of the class of each image, 0 without classes
    class_names: list[str] | None = None


def find_folder_images(train_data_dir: str | Path, class_conditional: bool = False) -> FoundImages:
    """
    The images of a folder and its sub-folders, in the order of their paths.

    Args:
        train_data_dir: The folder.
        class_conditional: Take the first sub-folder on the way to an image as its class.

    Raises:
        ValueError: If there is no image, or with classes one in no sub-folder.
    """
    files = Path(train_data_dir).rglob("*")
    paths = sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir())
    if not paths:
        raise ValueError(f"`train_data_dir` holds no images: {train_data_dir}")
    if not class_conditional:
        return FoundImages(paths, [0] * len(paths))
    parts = [path.relative_to(train_data_dir).parts for path in paths]
    if min(map(len, parts)) < 2:
        raise ValueError(
            f"`class_conditional` needs each image in a sub-folder of its class, not {min(parts, key=len)[0]}."
        )
    names = sorted({part[0] for part in parts})
    return FoundImages(paths, [names.index(part[0]) for part in parts], names)


def find_dataset_images(
    dataset_name: str,
    dataset_config_name: str | None = None,
    *,
    image_column: str = "image",
    label_column: str = "label",
    class_conditional: bool = False,
    cache_dir: str | Path | None = None,
) -> FoundImages:
    """
    The images of the split `train` of a data set of the Hub, or of what else `datasets.load_dataset` takes.

    Args:
        dataset_name: Its name or path.
        dataset_config_name: Its configuration, where it has several.
        image_column: The column of the images.
        label_column: The column of the classes, which is read if `class_conditional`; its values become numbers in
            their order, unless they are numbers of named classes already.
        class_conditional: Whether the classes are needed.
        cache_dir: Where `datasets` keeps its files.

    Raises:
        ImportError: If `datasets` is not installed.
        ValueError: If the data set cannot be loaded, a column is missing or holds no images, or a label is no class.
    """
    datasets = import_extra("datasets", "train")
    try:
        data = datasets.load_dataset(dataset_name, dataset_config_name, cache_dir=cache_dir, split="train")
    except Exception as error:
        raise ValueError(f"`dataset_name` {dataset_name!r} cannot be loaded: {error}") from error
    for name, column in [("image_column", image_column)] + [("label_column", label_column)] * class_conditional:
        if column not in data.column_names:
            raise ValueError(f"`{name}` must be one of {data.column_names}, but is {column!r}.")
    try:
        images = data.cast_column(image_column, datasets.Image(decode=False))[image_column]
    except Exception as error:
        raise ValueError(f"`image_column` {image_column!r} holds no images: {error}") from error
    if not class_conditional:
        return FoundImages(images, [0] * len(images))
    labels = list(data[label_column])
    feature = data.features[label_column]
    is_class = isinstance(feature, datasets.ClassLabel)
    for index, label in enumerate(labels):
        if label is None or (is_class and not 0 <= label < len(feature.names)):
            raise ValueError(f"`{label_column}` of number {index} of the data set is {label!r}, which is no class.")
    if is_class:
        return FoundImages(images, labels, feature.names)
    values = sorted(set(labels))
    return FoundImages(images, [values.index(label) for label in labels], [str(value) for value in values])


class ImageDataset(torch.utils.data.Dataset):
    """
    All images, scaled to cover `resolution`: decoded once, which shows that each can be read, and kept in memory if
    they fit, 8-bit images as bytes, others as float.

    An item is one of them, cropped and maybe mirrored, float32 of shape (C, *resolution) in [-1, 1], and the number of
    its class. Order, crops and flips are drawn from the seed and the epoch.

    Args:
        items, labels, class_names: As of `find_folder_images` or `find_dataset_images`.
        resolution: Height and width of an item, in pixels.
        channels: 1 for gray, 3 for colour, 4 with alpha; if not given, the largest number that an image has. Gray
            images become colour where others are.
        center_crop: Take the middle of what is scaled, not a part drawn at random.
        random_flip: Mirror each image in half of the epochs.
        image_cache_gb: Memory for decoded images, in 10^9 bytes; half of what is free if not given.
        seed: At least 0.

    Attributes:
        channels: The number of channels C.
        images: The decoded images, (C, H, W) each, or None if they do not fit in memory and are decoded when asked for.

    Raises:
        ValueError: If an image cannot be read, or has another number of channels; it is named.
    """

    def __init__(
        self,
        items: Sequence[Path | dict],
        labels: Sequence[int],
        class_names: list[str] | None = None,
        *,
        resolution: Sequence[int],
        channels: int | None = None,
        center_crop: bool = False,
        random_flip: bool = False,
        image_cache_gb: float | None = None,
        seed: int = 0,
    ):
        self.items, self.labels, self.class_names = items, labels, class_names
        self.resolution, self.center_crop, self.random_flip = resolution, center_crop, random_flip
        self.given_channels, self.seed = channels, seed
        limit = _free_memory() / 2 if image_cache_gb is None else image_cache_gb * 1e9

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
        self.channels = channels or max(seen)
        for number, name in seen.items():
            if number != self.channels and (number, self.channels) != (1, 3):
                raise ValueError(f"The training image {name} has {number} channels, not {self.channels}.")
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
            image = decode_image(self.items[index], self.given_channels)
        except Exception as error:
            raise ValueError(f"The training image {self._name(index)} cannot be read: {error}") from error
        return scale_to_cover(image, *self.resolution)


def _free_memory() -> float:
    """Bytes of free memory for each process of this machine."""
    psutil = import_extra("psutil", "train")
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
