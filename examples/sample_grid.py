# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Loads a saved pipeline, samples images by DDIM and writes them as one picture, or, of a model with other than 1, 3 or 4
channels, as one array.

    python examples/sample_grid.py outputs/digits --num_images 64 --num_inference_steps 20
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import DDPMScheduler

from ddim_scheduler import EtaDDIMPipeline
from ddim_scheduler.command_line import run
from ddim_scheduler.generation import PICTURE_CHANNELS, image_shape, picture_grid

TIMED_DDPM_STEPS = 20


def main(argv: list[str] | None = None) -> Path:
    """Writes the picture and returns its path."""
    parser = argparse.ArgumentParser(
        description="Sample images from a saved pipeline by DDIM and write them as one picture.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("pipeline", help="folder or Hub id of an EtaDDIMPipeline")
    parser.add_argument("--num_images", type=int, default=64, help="number of images; the classes of a UNet take turns")
    parser.add_argument("--num_inference_steps", type=int, default=20, help="DDIM steps")
    parser.add_argument("--eta", type=float, default=0.0, help="0: deterministic, 1: as random as DDPM")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images")
    parser.add_argument("--scale", type=int, default=2, help="each pixel becomes that many pixels wide and high")
    parser.add_argument("--output", type=Path, default=Path("outputs/grid.png"), help="file to write")
    parser.add_argument("--compare_ddpm", action="store_true", help="also print how long 1000 DDPM steps would take")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to sample")
    args = parser.parse_args(argv)
    for name in ("num_images", "scale"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(args, name)}")
    if args.output.is_dir() or PIL.Image.registered_extensions().get(args.output.suffix.lower()) not in PIL.Image.SAVE:
        parser.error(f"--output must be the name of a picture, grid.png for instance, but is {args.output}")
    args.output.parent.mkdir(parents=True, exist_ok=True)

    pipeline = EtaDDIMPipeline.from_pretrained(args.pipeline).to(args.device)
    makes_pictures = pipeline.image_channels in PICTURE_CHANNELS
    num_embeds = pipeline.unet.config.num_class_embeds  # the last of them means no class
    labels = None if num_embeds is None else [k % max(1, num_embeds - 1) for k in range(args.num_images)]
    start = time.perf_counter()
    settings = {"seed": args.seed, "class_labels": labels, "output_type": "pil" if makes_pictures else "np"}
    images = pipeline(args.num_images, args.num_inference_steps, args.eta, **settings).images
    seconds = time.perf_counter() - start
    print(f"{args.num_images} images by {args.num_inference_steps} DDIM steps: {seconds:.1f} s")
    if args.compare_ddpm:
        ddpm_seconds = time_ddpm_step(pipeline, args.num_images, labels) * 1000
        print(
            f"{args.num_images} images by 1000 DDPM steps: {ddpm_seconds:.0f} s, {ddpm_seconds / seconds:.0f} times as "
            f"long (diffusers' DDPMScheduler, same weights; {TIMED_DDPM_STEPS} of the 1000 steps were timed)"
        )

    if not makes_pictures:
        args.output = args.output.with_suffix(".npy")
        np.save(args.output, images)
        print(f"Images of {images.shape[-1]} channels are no picture: {args.output.resolve()} holds {images.shape}")
        return args.output
    images = [image.resize((args.scale * image.width, args.scale * image.height), 0) for image in images]
    columns = math.ceil(math.sqrt(len(images)))
    picture_grid(images, math.ceil(len(images) / columns), columns).save(args.output)
    print(f"The picture is {args.output.resolve()}")
    return args.output


@torch.no_grad()
def time_ddpm_step(pipeline: EtaDDIMPipeline, num_images: int, class_labels: list[int] | None) -> float:
    """Seconds of one step of diffusers' ancestral sampler with the pipeline's UNet, the mean over a few."""
    unet = pipeline.unet
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, variance_type="fixed_small")
    sample = torch.randn(num_images, *image_shape(unet), device=unet.device)
    labels = None if class_labels is None else torch.tensor(class_labels, device=unet.device)
    start = time.perf_counter()
    for t in scheduler.timesteps[:TIMED_DDPM_STEPS]:
        sample = scheduler.step(unet(sample, t, labels).sample, t, sample).prev_sample
    sample.cpu()  # waits for a GPU
    return (time.perf_counter() - start) / TIMED_DDPM_STEPS


if __name__ == "__main__":
    run(main)
