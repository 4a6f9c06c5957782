# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
The same noise through five samplers, in few calls and in many: a picture to look at. Under each is the root mean square
distance over the pixels, in [0, 1], from where DDIM ends with all timesteps.

    python benchmarks/few_steps_picture.py models/digits --output docs/few-steps-digits.png
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ddim_scheduler import EtaDDIMPipeline
from ddim_scheduler.app.samplers import FITTED, OURS, Model, Settings, distance, reference, sample
from ddim_scheduler.command_line import run
from ddim_scheduler.generation import picture_grid

COUNTS = (5, 10, 20, 50)
ROWS = {
    "first order,\ntrailing": (OURS, "trailing"),
    "fitted": (OURS, FITTED),
    "UniPC": ("UniPC", "trailing"),
    "DPM-Solver++": ("DPM-Solver++", "trailing"),
    "diffusers'\nDDIMScheduler": ("diffusers' DDIM", "trailing"),
}
NUM_IMAGES, COLUMNS = 8, 4


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(
        description="Draw the same noise by five samplers in few calls and in many.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="folder or Hub id of an EtaDDIMPipeline with fitted samplers")
    parser.add_argument("--seed", type=int, default=0, help="seed of the eight images")
    parser.add_argument("--output", type=Path, default=Path("outputs/few-steps.png"), help="PNG file to write")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"--seed must be at least 0, but is {args.seed}")
    if args.output.is_dir():
        parser.error(f"--output must be a file, but this is a folder: {args.output}")
    model = Model(EtaDDIMPipeline.from_pretrained(args.model), args.model)
    missing = [count for count in COUNTS if count not in model.fitted_steps]
    if missing:
        command = f"python -m ddim_scheduler.fitting {args.model} --steps {' '.join(map(str, missing))}"
        parser.error(f"model has no fitted samplers of {missing} steps: {command}")

    pictures = {}
    for name, (sampler, spacing) in ROWS.items():
        for count in COUNTS:
            settings = Settings(args.seed, NUM_IMAGES, count, sampler=sampler, timestep_spacing=spacing, clip=False)
            pictures[name, f"{count} calls"] = sample(model, settings).images
    converged = reference(model, Settings(args.seed, NUM_IMAGES, clip=False))

    columns = list(dict.fromkeys(column for _, column in pictures))
    figure = Figure(figsize=(2.2 * len(columns) + 1, 1.4 * len(ROWS) + 1.3), layout="constrained")
    axes = figure.subplots(len(ROWS) + 1, len(columns))
    for i, row in enumerate(ROWS):
        axes[i, 0].set_ylabel(row, rotation=0, ha="right", va="center")
        for j, column in enumerate(columns):
            show(axes[i, j], pictures[row, column])
            axes[i, j].set_xlabel(f"{distance(pictures[row, column], converged):.3f}", fontsize="small")
            if i == 0:
                axes[i, j].set_title(column)
    for axis in axes[-1, 1:]:
        axis.remove()
    axes[-1, 0].set_ylabel(f"{model.num_train_timesteps} steps", rotation=0, ha="right", va="center")
    show(axes[-1, 0], converged)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=110)
    print(f"The picture is {args.output}")


def show(axis, images: torch.Tensor):
    tiles = EtaDDIMPipeline.numpy_to_pil(images.permute(0, 2, 3, 1).numpy())
    axis.imshow(picture_grid(tiles, NUM_IMAGES // COLUMNS, COLUMNS), cmap="gray", interpolation="nearest")
    axis.set(xticks=[], yticks=[])


if __name__ == "__main__":
    run(main)
