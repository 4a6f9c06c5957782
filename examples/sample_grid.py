# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Loads a saved pipeline, samples images by its scheduler and writes them as one picture, or, of a model with other than
1, 3 or 4 channels, as one array.

    python examples/sample_grid.py outputs/digits --num_images 64 --num_inference_steps 20
"""

import argparse
import io
import math
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import DDIMScheduler

from ddim_scheduler import EtaDDIMPipeline
from ddim_scheduler.command_line import Parser, add_device, run
from ddim_scheduler.generation import (
    PICTURE_CHANNELS,
    classes_in_turn,
    in_turn,
    picture_grid,
    read_conditions,
    use_scheduler,
)
from ddim_scheduler.image_files import IMAGE_MODES

GAP = 8  # pixels between two grids


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Sample images from a saved pipeline and write them as one picture.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("pipeline", help="folder or Hub id of an EtaDDIMPipeline")
    parser.add_argument("--num_images", type=int, default=64, help="number of images; the classes of a UNet take turns")
    parser.add_argument("--num_inference_steps", type=int, default=20, help="steps, each a call of the model")
    parser.add_argument("--eta", type=float, default=0.0, help="0: deterministic, 1: as random as DDPM")
    parser.add_argument("--class_labels", type=int, nargs="+", help="classes, by number, instead of all of the UNet")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="classifier-free guidance; 1: none")
    parser.add_argument(
        "--condition_dir",
        type=Path,
        help="folder or zip archive of the pictures that the images are made from, in turn",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the images")
    parser.add_argument("--scale", type=int, default=2, help="each pixel becomes that many pixels wide and high")
    parser.add_argument("--output", type=Path, default=Path("outputs/grid.png"), help="file to write")
    parser.add_argument(
        "--compare_builtin",
        action="store_true",
        help="to the right, the same noise by the DDIMScheduler in diffusers, in as many steps",
    )
    add_device(parser, "where to sample")
    args = parser.parse_args(argv)
    for name in ("num_images", "scale"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(args, name)}")
    if args.output.is_dir() or PIL.Image.registered_extensions().get(args.output.suffix.lower()) not in PIL.Image.SAVE:
        parser.error(f"--output must be the name of a picture, grid.png for instance, but is {args.output}")
    return args


def main(argv: list[str] | None = None) -> Path:
    """Writes the picture and returns its path."""
    args = parse_args(argv)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    pipeline = EtaDDIMPipeline.from_pretrained(args.pipeline).to(args.device)
    if pipeline.image_channels in PICTURE_CHANNELS:  # a format may know no transparency
        format = PIL.Image.registered_extensions()[args.output.suffix.lower()]
        PIL.Image.new(IMAGE_MODES[pipeline.image_channels], (1, 1)).save(io.BytesIO(), format)
    labels = classes_in_turn(pipeline.unet, args.class_labels, args.guidance_scale)
    conditions = in_turn(read_conditions(args.condition_dir, pipeline, args.num_images), range(args.num_images))

    arrays = [sample(pipeline, args, labels, conditions)]
    if args.compare_builtin:
        spacing = pipeline.scheduler.config.timestep_spacing
        known = spacing in ("leading", "linspace", "trailing")
        use_scheduler(pipeline, DDIMScheduler, timestep_spacing=spacing if known else "trailing")
        arrays.append(sample(pipeline, args, labels, conditions))

    if pipeline.image_channels not in PICTURE_CHANNELS:
        args.output = args.output.with_suffix(".npy")
        np.save(args.output, np.concatenate(arrays))
        print(
            f"Images of {arrays[0].shape[-1]} channels are no picture: {args.output.resolve()} holds them as an array"
        )
        return args.output
    grids = [grid(EtaDDIMPipeline.numpy_to_pil(array), args.scale) for array in arrays]
    width, height = grids[0].size
    picture = PIL.Image.new(grids[0].mode, (len(grids) * (width + GAP) - GAP, height), "white")
    for k, one in enumerate(grids):
        picture.paste(one, (k * (width + GAP), 0))
    picture.save(args.output)
    print(f"The picture is {args.output.resolve()}")
    return args.output


def sample(
    pipeline: EtaDDIMPipeline, args: argparse.Namespace, labels: list[int] | None, conditions: torch.Tensor | None
) -> np.ndarray:
    """The images, (N, H, W, C) in [0, 1]; prints by what and how fast they were made."""
    start = time.perf_counter()
    images = pipeline(
        args.num_images,
        args.num_inference_steps,
        args.eta,
        seed=args.seed,
        class_labels=None if labels is None else [labels[k % len(labels)] for k in range(args.num_images)],
        guidance_scale=args.guidance_scale,
        condition=conditions,
        output_type="np",
    ).images
    name = f"{type(pipeline.scheduler).__name__}, {pipeline.scheduler.config.timestep_spacing}"
    seconds = time.perf_counter() - start
    print(f"{args.num_images} images by {args.num_inference_steps} steps ({name}): {seconds:.1f} s", flush=True)
    return images


def grid(images: list[PIL.Image.Image], scale: int) -> PIL.Image.Image:
    """Images, enlarged, as a square."""
    images = [image.resize((scale * image.width, scale * image.height), 0) for image in images]
    columns = math.ceil(math.sqrt(len(images)))
    return picture_grid(images, math.ceil(len(images) / columns), columns)


if __name__ == "__main__":
    run(main)
