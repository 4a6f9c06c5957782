# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Sets of image files: which ones a folder or an archive holds, and reading them all."""

import contextlib
import importlib
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from .image_files import DEEP, WHITE_LEVEL, ReadImage, read_image

IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm"),
    *(".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".ico", ".tga", ".npy"),
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # of phones, with the package pillow-heif
ALMOST_BLACK = 1 / 8  # of white: a set that stays below is remarked upon
SHOWN = 20  # of the files that cannot be read


class FoundFiles(NamedTuple):
    """Images that are not decoded yet."""

    items: list[Path | dict]  # as of `image_files.read_image`
    names: list[PurePath]  # of the images, in the folder or archive
    left_out: Counter[str]  # how many other files there are, by their ending


def find_images(source: str | Path) -> FoundFiles:
    """
    The images of a folder and its sub-folders, linked ones too, or of a zip archive, in the order of their paths.
    Hidden ones, what macOS adds to an archive, and files of other endings are left out and counted.

    Args:
        source: The folder, or the archive.

    Raises:
        ValueError: If it is neither.
    """
    is_folder = Path(source).is_dir()
    suffixes = (*IMAGE_SUFFIXES, *HEIF_SUFFIXES) if _can_read_heif() else IMAGE_SUFFIXES
    names, left_out, items = [], Counter[str](), list[Path | dict]()
    for name, entry in sorted(_files(Path(source), left_out)):
        if any(map(_is_hidden, name.parts)):
            left_out["hidden"] += 1
        elif name.suffix.lower() in suffixes:
            names.append(name)
            items.append(Path(entry) if is_folder else {"bytes": None, "path": f"zip://{entry}::{source}"})
        else:
            left_out[name.suffix.lower() or "without an ending"] += 1
    return FoundFiles(items, names, left_out)


def _files(source: Path, left_out: Counter[str]) -> Iterator[tuple[PurePath, str]]:
    """The files of a folder or archive, each once: their path in it, and what they are opened by."""
    if not (source.is_dir() or zipfile.is_zipfile(source)):
        raise ValueError(f"{source} is no folder and no zip archive.")
    if not source.is_dir():
        with zipfile.ZipFile(source) as archive:
            yield from ((PurePath(name), name) for name in dict.fromkeys(archive.namelist()) if not name.endswith("/"))
        return
    seen = set()
    for root, folders, files in os.walk(source, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # by another link, or a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        left_out.update("hidden folder" for name in folders if _is_hidden(name))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from ((PurePath(root, name).relative_to(source), str(Path(root, name))) for name in files)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _can_read_heif() -> bool:
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
        return True
    return False


class ImageReader:
    """
    Reads the images of a set, several at a time, and keeps account of it.

    Args:
        items: As of `image_files.read_image`.
        kind: What they are called in messages.
        channels, size, background: As of `image_files.read_image`.
        white_level: The value of white in 16-bit images; if not given, 65535, which is refused where all of them stay
            below a quarter of it.
        skip_broken: Leave out those that cannot be read; None where nobody is asked, so that no error names it.

    Attributes:
        notes: How many images were taken in a way that a person should know.
        broken: Why an image cannot be read, by its index.
    """

    def __init__(
        self,
        items: Sequence[Path | dict],
        kind: str = "image",
        *,
        channels: int | None = None,
        size: tuple[int, int] | None = None,
        background: str = "white",
        white_level: int | None = None,
        skip_broken: bool | None = None,
    ):
        self.items, self.kind, self.channels, self.size = items, kind, channels, size
        self.background, self.white_level, self.skip_broken = background, white_level, skip_broken
        self.notes = Counter[str]()
        self.broken = dict[int, str]()

    def name(self, index: int) -> str:
        item: Any = self.items[index]
        return str(item) if isinstance(item, Path) else (item or {}).get("path") or f"number {index} of the data set"

    def read(self, index: int) -> ReadImage:
        """
        One image.

        Raises:
            ValueError: If it cannot be read.
        """
        try:
            return read_image(
                self.items[index],
                self.channels,
                self.size,
                background=self.background,
                white_level=self.white_level or WHITE_LEVEL,
            )
        except Exception as error:
            raise ValueError(f"The {self.kind} {self.name(index)} cannot be read: {error}") from error

    def read_all(self, show_progress: bool = True) -> Iterator[tuple[int, torch.Tensor]]:
        """
        The index and the pixels (C, H, W) of each image that can be read.

        Raises:
            ValueError: At the end, if images cannot be read, in one list, or their white level is to be given.
        """
        highest, highest_of_deep, number_of_deep = 0.0, 0.0, 0
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
            images = pool.map(self._try, range(len(self.items)))
            is_off = None if show_progress else True  # None: where the output is no terminal
            bar = tqdm(images, "Decoding", total=len(self.items), leave=False, disable=is_off)
            for index, image in enumerate(bar):
                if isinstance(image, ValueError):
                    self.broken[index] = str(image)
                    continue
                self.notes.update(image.notes)
                has_alpha = self.channels in (2, 4) and len(image.pixels) == self.channels
                colours = image.pixels[:-1] if has_alpha else image.pixels
                value = colours.max().item() / (255 if colours.dtype == torch.uint8 else 1)
                highest = max(highest, value)
                if DEEP in image.notes:
                    highest_of_deep, number_of_deep = max(highest_of_deep, value), number_of_deep + 1
                yield index, image.pixels
        if self.broken and not self.skip_broken:
            advice = "" if self.skip_broken is None else "\n`skip_broken` leaves them out."
            raise ValueError(self.list_of_broken() + advice)
        if len(self.broken) == len(self.items):
            raise ValueError(self.list_of_broken())
        if number_of_deep and highest_of_deep < 1 / 4 and self.white_level is None:
            raise ValueError(
                f"{number_of_deep} images of 16 bits go up to {round(highest_of_deep * WHITE_LEVEL)} of {WHITE_LEVEL}, "
                "almost black: give `white_level`, 4095 if they have 12 bits, 65535 if they are meant so."
            )
        if highest < ALMOST_BLACK:
            advice = ": spread numbers of classes over the whole range" * (self.kind == "condition")
            self.notes[f"almost black, up to {highest:.1%} of white{advice}"] = len(self.items) - len(self.broken)

    def remarks(self, left_out: Counter[str]) -> list[str]:
        """What a person should know of how the set was read, a line for each kind, with the number of images."""
        lines = [f"{number} {note}" for note, number in self.notes.most_common()]
        if self.broken:
            lines.append(self.list_of_broken())
        if left_out:
            lines.append("left out: " + ", ".join(f"{number} {ending}" for ending, number in left_out.most_common()))
        return lines

    def list_of_broken(self) -> str:
        """Why images cannot be read, a line for each; the first ones of many."""
        reasons = [reason for _, reason in sorted(self.broken.items())]
        if len(reasons) == 1:
            return reasons[0]
        more = [f"and {len(reasons) - SHOWN} more"] * (len(reasons) > SHOWN)
        return "\n".join([f"{len(reasons)} of {len(self.items)} cannot be read.", *reasons[:SHOWN], *more])

    def _try(self, index: int) -> ReadImage | ValueError:
        try:
            return self.read(index)
        except ValueError as error:
            return error
