# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Training images: where they are, what their classes are, and a data set of them that is the same for every run.

Names of arguments are those of the options of the training command, which the messages of errors use as well.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch

from ..command_line import import_extra
from ..image_files import scale_to
from ..image_folders import ImageReader, find_images

logger = logging.getLogger(__name__)

PARTS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")  # of data; no classes


class FoundImages(NamedTuple):
    """Images that are not decoded yet: paths, or dictionaries with encoded `bytes` or a `path`, as of `datasets`."""

    items: Sequence[Path | dict]
    labels: Sequence[int]  # the number of the class of each image, 0 without classes
    class_names: list[str] | None = None
    conditions: Sequence[Path | dict] | None = None  # the picture that belongs to each image
    left_out: Counter[str] = Counter()  # how many other files there are, by their ending

    def split(self, share: float, seed: int = 0) -> "tuple[FoundImages, FoundImages]":
        """
        Two sets, the second one of a share of the images, drawn from the seed.

        Args:
            share: In (0, 1); of n images `round(share n)`, at least 1, are in the second set.
            seed: At least 0.

        Raises:
            ValueError: If none would be left in the first set.
        """
        number = max(1, round(share * len(self.items)))
        if number >= len(self.items):
            raise ValueError(f"`validation_share` {share} of {len(self.items)} images leaves none to train on.")
        chosen = set(np.random.default_rng((seed, 1)).permutation(len(self.items))[:number].tolist())
        parts = [[k for k in range(len(self.items)) if (k in chosen) is is_second] for is_second in (False, True)]
        first, second = (
            self._replace(
                items=_only(self.items, part),
                labels=[self.labels[k] for k in part],
                conditions=None if self.conditions is None else _only(self.conditions, part),
            )
            for part in parts
        )
        return first, second._replace(left_out=Counter())


def find_folder_images(
    train_data_dir: str | Path, class_conditional: bool = False, condition_dir: str | Path | None = None
) -> FoundImages:
    """
    The images of a folder and its sub-folders, or of a zip archive, in the order of their paths.

    Args:
        train_data_dir: The folder or archive.
        class_conditional: Take the first sub-folder on the way to an image as its class.
        condition_dir: Another one, with a picture for each image: of the same path there, but for the ending.

    Raises:
        ValueError: If there is no image, with classes one in no sub-folder, or sub-folders that are named as parts of
            data, or if an image has not exactly one condition.
    """
    items, names, left_out = find_images(train_data_dir)
    if not items:
        others = ", ".join(f"{number} {ending}" for ending, number in sorted(left_out.items())) or "nothing else"
        raise ValueError(f"`train_data_dir` holds no images: {train_data_dir} (but {others}).")
    found = FoundImages(items, [0] * len(items), left_out=left_out)
    if condition_dir is not None:
        conditions, number_of_others = _conditions(names, condition_dir)
        found = found._replace(conditions=conditions)
        if number_of_others:
            left_out["conditions of no image"] = number_of_others
    if not class_conditional:
        return found
    parts = [name.parts for name in names]
    if min(map(len, parts)) < 2:
        raise ValueError(
            f"`class_conditional` needs each image in a sub-folder of its class, not {min(parts, key=len)[0]}."
        )
    classes = sorted({part[0] for part in parts})
    if {name.lower() for name in classes} <= set(PARTS):
        raise ValueError(
            f"`class_conditional` would learn {classes} as classes: give one of them as `train_data_dir`, "
            f"{Path(train_data_dir, classes[-1])} for instance."
        )
    return found._replace(labels=[classes.index(part[0]) for part in parts], class_names=classes)


def _only(items: Sequence, indices: list[int]) -> Any:
    """Some of the items, which are not read yet: those of `datasets` come from its files."""
    return torch.utils.data.Subset(items, indices)  # type: ignore[arg-type]


def _conditions(names: Sequence[PurePath], condition_dir: str | Path) -> tuple[list[Path | dict], int]:
    """The picture of a folder that belongs to each image, and how many belong to none."""
    items, others, _ = find_images(condition_dir)
    by_stem: dict[PurePath, list[Path | dict]] = {}
    for item, name in zip(items, others, strict=True):
        by_stem.setdefault(name.with_suffix(""), []).append(item)
    numbers = [(len(by_stem.get(name.with_suffix(""), [])), name) for name in names]
    if wrong := [f"{name} has {number}" for number, name in numbers if number != 1]:
        raise ValueError(
            f"`condition_dir` {condition_dir} must hold one picture of the same name for each image, but of "
            f"{len(wrong)} of {len(names)} it does not: {', '.join(wrong[:5])}."
        )
    stems = [name.with_suffix("") for name in names]
    return [by_stem[stem][0] for stem in stems], len(items) - len({*stems})


def find_dataset_images(
    dataset_name: str,
    dataset_config_name: str | None = None,
    split: str | None = None,
    *,
    image_column: str = "image",
    label_column: str = "label",
    class_conditional: bool = False,
    cache_dir: str | Path | None = None,
) -> FoundImages:
    """
    The images of a data set of the Hub, of what else `datasets.load_dataset` takes, or of a folder of `save_to_disk`.

    Args:
        dataset_name: Its name or path.
        dataset_config_name: Its configuration, where it has several.
        split: The part of it, `"test"` or `"train[:90%]"` for instance; `"train"` if not given.
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
        if any(Path(dataset_name, name).is_file() for name in ("state.json", "dataset_dict.json")):
            data = datasets.load_from_disk(dataset_name)
            parts = data if isinstance(data, dict) else {str(data.split): data}
            if isinstance(data, dict) or split is not None:
                if (split or "train") not in parts:
                    raise ValueError(f"`split` must be one of {[*parts]}, but is {split or 'train'!r}.")
                data = parts[split or "train"]
        else:
            data = datasets.load_dataset(dataset_name, dataset_config_name, cache_dir=cache_dir, split=split or "train")
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
    its class; where the images have conditions, also the condition, cropped and mirrored in the same way. Order, crops
    and flips are drawn from the seed and the epoch.

    Args:
        items, labels, class_names, conditions, left_out: As of `find_folder_images` or `find_dataset_images`.
        resolution: Height and width of an item, in pixels.
        channels: 1 for gray, 3 for colour, 4 with alpha; if not given, the largest number that an image has. Gray
            images become colour where others are.
        condition_channels: The same for the conditions.
        center_crop: Take the middle of what is scaled, not a part drawn at random.
        random_flip: Mirror each image in half of the epochs.
        image_cache_gb: Memory for decoded images, in 10^9 bytes; half of what is free if not given.
        background, white_level, skip_broken: As of `image_folders.ImageReader`.
        seed: At least 0.

    Attributes:
        channels: The number of channels C.
        condition_channels: That of the conditions; 0 without.
        images: The decoded images, (C, H, W) each, with their conditions, or None if they do not fit in memory and are
            decoded when asked for.
        notes: How many images were taken in a way that a person should know.

    Raises:
        ValueError: If images cannot be read or have another number of channels, or a condition has other proportions
            than its image; they are named.
    """

    def __init__(
        self,
        items: Sequence[Path | dict],
        labels: Sequence[int],
        class_names: list[str] | None = None,
        conditions: Sequence[Path | dict] | None = None,
        left_out: Counter[str] | None = None,
        *,
        resolution: Sequence[int],
        channels: int | None = None,
        condition_channels: int | None = None,
        center_crop: bool = False,
        random_flip: bool = False,
        image_cache_gb: float | None = None,
        background: str = "white",
        white_level: int | None = None,
        skip_broken: bool = False,
        seed: int = 0,
    ):
        self.class_names, self.left_out = class_names, left_out or Counter[str]()
        self.resolution, self.center_crop, self.random_flip = resolution, center_crop, random_flip
        self.seed = seed
        limit = _free_memory() / 2 if image_cache_gb is None else image_cache_gb * 1e9
        settings: dict[str, Any] = {"size": tuple(resolution), "background": background, "white_level": white_level}
        settings["skip_broken"] = skip_broken
        self.readers = [ImageReader(items, "training image", channels=channels, **settings)]
        if conditions is not None:
            self.readers.append(ImageReader(conditions, "condition", channels=condition_channels, **settings))

        # 1. all are decoded, which fills `images` as long as they fit
        logger.info(f"Decoding {len(items)} images ...")
        show_progress = int(os.environ.get("LOCAL_RANK", 0)) == 0
        decoded: list[dict[int, torch.Tensor]] | None = []
        shapes: list[dict[int, torch.Size]] = []
        size = 0
        for reader in self.readers:
            if decoded is not None:
                decoded.append({})
            shapes.append({})
            for index, image in reader.read_all(show_progress):
                shapes[-1][index] = image.shape
                size += image.nbytes
                if size > limit:
                    decoded = None
                elif decoded is not None:
                    decoded[-1][index] = image

        # 2. what they must have in common
        self.indices = [k for k in range(len(items)) if all(k in shape for shape in shapes)]
        self.labels = [labels[k] for k in self.indices]
        self.images: list[list[torch.Tensor]] | None = None
        if decoded is not None:
            self.images = [[images[k] for images in decoded] for k in self.indices]
        numbers = [
            self._common_channels(reader, shape, given)
            for reader, shape, given in zip(self.readers, shapes, (channels, condition_channels), strict=False)
        ]
        self.channels, self.condition_channels = (*numbers, 0)[:2]
        for k in self.indices if conditions is not None else []:
            of_image, of_condition = ([*shape[k][1:]] for shape in shapes)
            if any(abs(a - b) > 1 + 0.01 * a for a, b in zip(of_image, of_condition, strict=True)):
                raise ValueError(
                    f"The condition {self.readers[1].name(k)} has other proportions than {self.readers[0].name(k)}: "
                    f"scaled, they are {of_condition} and {of_image}."
                )
        self.notes = self.readers[0].notes
        if cut := sum(tuple(shapes[0][k][1:]) != tuple(resolution) for k in self.indices):
            self.notes["cut to the proportions asked for"] = cut
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # for the processes that load images
        self.set_epoch(0)

    def set_epoch(self, epoch: int):
        """Draws the order, the crops and the flips. Called by accelerate at the start of each epoch."""
        self.epoch.fill_(epoch)
        self._draw()

    def _draw(self):
        self.drawn = int(self.epoch)
        rng = np.random.default_rng((self.seed, self.drawn))
        self.order = rng.permutation(len(self.indices))
        self.draws = rng.random((len(self.indices), 3))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple:
        if self.drawn != self.epoch:  # in a process that began in an earlier one
            self._draw()
        number = self.order[position]
        pictures = self._load(self.indices[number]) if self.images is None else self.images[number]
        (height, width), (top, left, flip) = self.resolution, self.draws[number]
        top, left = (
            space // 2 if self.center_crop else int((space + 1) * draw)
            for space, draw in ((pictures[0].shape[1] - height, top), (pictures[0].shape[2] - width, left))
        )
        result = []
        for picture, channels in zip(pictures, (self.channels, self.condition_channels), strict=False):
            image = scale_to(picture, *pictures[0].shape[1:])  # a condition, to the pixel
            image = image[:, top : top + height, left : left + width].expand(channels, -1, -1)
            if self.random_flip and flip < 0.5:
                image = image.flip(-1)
            scale = 255 if image.dtype == torch.uint8 else 1
            result.append(image.float() / scale * 2 - 1)
        return result[0], self.labels[number], *result[1:]

    def frequent_labels(self, number: int) -> list[int]:
        """So many labels, each as frequent as among the images."""
        return [self.labels[k * len(self) // number] for k in range(number)]

    def remarks(self) -> list[str]:
        """What a person should know of how the images were taken, a line for each kind."""
        lines = self.readers[0].remarks(self.left_out)
        for reader in self.readers[1:]:
            lines += [f"conditions: {line}" for line in reader.remarks(Counter())]
        return lines

    def _load(self, index: int) -> list[torch.Tensor]:
        return [reader.read(index).pixels for reader in self.readers]

    @staticmethod
    def _common_channels(reader: ImageReader, shapes: dict[int, torch.Size], given: int | None) -> int:
        """The number of channels of a set; gray ones become colour."""
        by_number = {shape[0]: index for index, shape in sorted(shapes.items(), reverse=True)}
        channels = given or max(by_number)
        for number, index in by_number.items():
            if number != channels and (number, channels) != (1, 3):
                raise ValueError(f"The {reader.kind} {reader.name(index)} has {number} channels, not {channels}.")
        return channels


def _free_memory() -> float:
    """Bytes of free memory for each process of this machine."""
    psutil = import_extra("psutil", "train")
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
