# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Compares generated images with real ones: Fréchet and kernel distance, precision and coverage.

    python examples/evaluate.py outputs/generated --reference data/digits/train --held_out data/digits/test \\
        --features digits --weights outputs/digits-classifier.safetensors

Every table has a row for real images that are not in the reference. That is the floor: no generator is expected below
it. Fréchet distances fall with the number of images, so compare rows of equal numbers only, and of the same features.
What too few images give no figure of is a dash, with the reason below.
"""

import argparse
import json
from pathlib import Path

from ddim_scheduler.command_line import Parser, add_device, import_extra, run
from ddim_scheduler.evaluation import (
    FEATURES,
    Scores,
    extract_features,
    load_images,
    load_network,
    scores,
    shuffled,
    why_missing,
)


def main(argv: list[str] | None = None) -> list[Scores]:
    """Prints a table and returns its rows: the images', then the floor."""
    parser = Parser(
        description="Compare generated images with real ones.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("images", type=Path, help="folder or .npz file of generated images, all of one size")
    parser.add_argument("--reference", type=Path, required=True, help="folder or .npz file of real images")
    parser.add_argument("--held_out", type=Path, help="more real images, for the floor (default: half of --reference)")
    parser.add_argument("--features", choices=FEATURES, default="inception", help="what the images are compared by")
    parser.add_argument("--weights", type=Path, help="file of the feature network's weights")
    parser.add_argument("--num_images", type=int, help="only the first of the generated images, by name")
    add_device(parser, "for the features")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    if args.num_images is not None and args.num_images < 1:
        parser.error(f"--num_images must be at least 1, but is {args.num_images}")
    for name in ("images", "reference", "held_out", "weights"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            parser.error(f"{name} is not there: {path}")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)

    import_extra("torchmetrics", "eval")  # before the work
    network = load_network(args.features, args.weights, args.device)
    images = load_images(args.images, args.num_images)
    features = extract_features(images, network)
    reference = load_images(args.reference, like=images)
    if args.held_out is None:
        if len(reference) < 2:
            raise ValueError(f"{args.reference} holds one image, but without --held_out its half is needed.")
        reference, held_out = shuffled(reference).chunk(2)
    else:
        held_out = shuffled(load_images(args.held_out, like=images))
    reference_features = extract_features(reference, network)
    held_out_features = extract_features(held_out[: len(images)], network)
    rows = [scores(features, reference_features), scores(held_out_features, reference_features)]

    print(f"{len(reference)} real images, {network.num_features} features: {args.features}\n")
    print("| | images | Fréchet | kernel x 1000 | precision | coverage |\n|---|---|---|---|---|---|")
    for name, row in zip((args.images, "floor: other real images"), rows, strict=True):
        print(f"| {name} | {row.num_images} | {format_scores(row)} |")
    for reason in dict.fromkeys(why_missing(row, len(reference), network.num_features) for row in rows):
        if reason is not None:
            print(f"\n{reason}")
    if rows[1].num_images < rows[0].num_images:
        print(f"\nThe floor is that of fewer images, so it is too high; see --num_images {rows[1].num_images}.")
    if args.json is not None:
        args.json.write_text(json.dumps({"images": rows[0]._asdict(), "floor": rows[1]._asdict()}, indent=2) + "\n")
    return rows


def format_scores(row: Scores) -> str:
    frechet = "-" if row.frechet is None else f"{row.frechet:.3g}"
    kernel = "-"
    if row.kernel is not None and row.kernel_std is not None:
        kernel = f"{1000 * row.kernel:.2f} ± {1000 * row.kernel_std:.2f}"
    nearest = ["-" if value is None else f"{value:.3f}" for value in (row.precision, row.coverage)]
    return " | ".join((frechet, kernel, *nearest))


if __name__ == "__main__":
    run(main)
