# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Super-resolution by a model with a condition: small pictures to train with, and the error of what the model makes of
small ones that it has not seen, beside bicubic enlargement.

    python examples/super_resolution.py shrink data/digits data/digits-small --factor 4
    python -m ddim_scheduler.training --train_data_dir data/digits/train --condition_dir data/digits-small/train \\
        --resolution 28 --block_out_channels 32 64 --output_dir outputs/digits-4x
    python examples/super_resolution.py measure outputs/digits-4x data/digits-small/test data/digits/test
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from ddim_scheduler import EtaDDIMPipeline
from ddim_scheduler.command_line import Parser, add_device, run
from ddim_scheduler.generation import image_shape, picture_grid
from ddim_scheduler.image_files import center_crop
from ddim_scheduler.image_folders import ImageReader, find_images
from ddim_scheduler.training import find_folder_images

SHOWN = 16


def shrink(args: argparse.Namespace):
    """Writes the images of a folder, smaller by a factor, under the same names."""
    found = find_images(args.images)
    for index, pixels in ImageReader(found.items).read_all():
        target = (args.output_dir / found.names[index]).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        small = F.avg_pool2d(as_floats(pixels)[None], args.factor, ceil_mode=True)
        EtaDDIMPipeline.numpy_to_pil(small.permute(0, 2, 3, 1).numpy())[0].save(target)
    print(f"{len(found.items)} pictures are in {args.output_dir}")


def as_floats(pixels: torch.Tensor) -> torch.Tensor:
    """In [0, 1]."""
    return pixels / 255 if pixels.dtype == torch.uint8 else pixels


def read(items, channels: int, size: tuple[int, int] | None) -> torch.Tensor:
    """Pictures, as the training reads them, (N, C, H, W) in [0, 1]."""
    pictures = [p for _, p in ImageReader(items, channels=channels, size=size).read_all()]
    if size is not None:
        pictures = [center_crop(p, *size) for p in pictures]
    return torch.stack([as_floats(p) for p in pictures])


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Prints and returns root mean square errors of pixels in [0, 1], and writes a picture."""
    pipeline = EtaDDIMPipeline.from_pretrained(args.pipeline).to(args.device)
    pipeline.set_progress_bar_config(leave=False)
    channels, *size = image_shape(pipeline.unet)
    found = find_folder_images(args.images, condition_dir=args.conditions)
    number = min(args.num_images, len(found.items))
    chosen = torch.randperm(len(found.items), generator=torch.Generator().manual_seed(0))[:number].tolist()
    truth = read([found.items[k] for k in chosen], channels, (size[0], size[1]))
    conditions = found.conditions or []
    small = read([conditions[k] for k in chosen], pipeline.condition_channels, None)
    settings = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    samples = torch.stack(
        [
            pipeline(condition=small, seed=seed, output_type="pt", **settings).images.cpu()
            for seed in range(args.samples)
        ]
    )
    results = {"bicubic": F.interpolate(small, size, mode="bicubic").clamp(0, 1)}
    results |= {"one sample": samples[0], f"mean of {args.samples}": samples.mean(0)}
    errors = {name: (result - truth).square().mean().sqrt().item() for name, result in results.items()}
    print(f"{number} images that the model has not seen, {args.num_inference_steps} steps; root mean square error:")
    for name, error in errors.items():
        print(f"  {name}: {error:.4f}")
    rows = [F.interpolate(small, size, mode="nearest"), results["bicubic"], samples[0], truth]
    pixels = torch.cat([row[:SHOWN] for row in rows]).permute(0, 2, 3, 1).numpy()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    picture_grid(pipeline.numpy_to_pil(pixels), len(rows), min(SHOWN, number)).save(args.output)
    print(f"Small, bicubic, made, true: {args.output}")
    return errors


def main(argv: list[str] | None = None) -> dict[str, float] | None:
    """Does what is asked for; returns the errors of `measure`."""
    parser = Parser(description="Super-resolution by a model with a condition.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("shrink", help="write small pictures")
    command.add_argument("images", type=Path, help="folder or zip archive of images")
    command.add_argument("output_dir", type=Path, help="folder for the small ones")
    command.add_argument("--factor", type=int, default=4, help="width and height become so many times smaller")
    command.set_defaults(do=shrink)
    command = commands.add_parser("measure", help="compare with bicubic enlargement")
    command.add_argument("pipeline", help="folder or Hub id of a model that was trained on such pairs")
    command.add_argument("conditions", type=Path, help="folder of small pictures that it has not seen")
    command.add_argument("images", type=Path, help="folder of their originals, of the same names")
    command.add_argument("--num_images", type=int, default=256, help="how many are compared")
    command.add_argument("--samples", type=int, default=8, help="samples for each of them; their mean has least error")
    command.add_argument("--num_inference_steps", type=int, default=20, help="DDIM steps")
    command.add_argument("--guidance_scale", type=float, default=1.0, help="above 1: closer to the condition")
    command.add_argument("--output", type=Path, default=Path("outputs/super-resolution.png"), help="picture to write")
    add_device(command, "where to sample")
    command.set_defaults(do=measure)
    args = parser.parse_args(argv)
    for name in ("factor", "num_images", "samples", "num_inference_steps"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(args, name)}")
    return args.do(args)


if __name__ == "__main__":
    run(main)
