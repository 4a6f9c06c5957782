# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Shows with a saved pipeline what an implicit model is for: the paper's sections 5.2 to 5.4 as pictures and figures.

    python examples/invert_and_interpolate.py outputs/digits data/digits/test --output_dir outputs/inversion

It writes `consistency.png` (the same x_T by different numbers of steps), `interpolation.png`, `interpolation_grid.png`,
`editing.png` and `reconstruction.png` (images, and what each inversion gives back by the smallest number of steps). It
prints the reconstruction error of each number of steps, as the paper's Table 2 does.
"""

import argparse
import random
from collections import Counter
from pathlib import Path

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, image_generators, slerp
from ddim_scheduler.command_line import Parser, add_device, run
from ddim_scheduler.generation import PICTURE_CHANNELS, image_shape, picture_grid
from ddim_scheduler.image_files import center_crop
from ddim_scheduler.image_folders import ImageReader, find_images
from ddim_scheduler.scheduling_ddim import TIMESTEP_SPACINGS

PICTURE_STEPS = 50  # of interpolation and editing
PARTS = ("consistency", "interpolation", "editing", "reconstruction")
METHODS = ("plain", "fixed_point", "o_belm")
THEIRS = "diffusers"  # its DDIMInverseScheduler and DDIMScheduler, which know `leading` and `trailing`
MOST_RECONSTRUCTED = 100  # images, unless more are asked for


def load_images(pipeline: EtaDDIMPipeline, args: argparse.Namespace) -> torch.Tensor:
    """A random choice of a folder's images, in the UNet's size, as for training: (B, C, H, W) in [0, 1]."""
    channels, height, width = image_shape(pipeline.unet)
    folder, items = args.image_dir, find_images(args.image_dir).items
    number = min(MOST_RECONSTRUCTED, len(items)) if args.num_reconstructed is None else args.num_reconstructed
    for name, needed in (("num_images", args.num_images), ("num_reconstructed", number)):
        if needed > len(items):
            raise ValueError(f"--{name} is {needed}, but {folder} holds {len(items)} images")
    reader = ImageReader(random.Random(args.seed).sample(items, number), channels=channels, size=(height, width))
    images = [center_crop(image, height, width).expand(channels, -1, -1) for _, image in reader.read_all()]
    for line in reader.remarks(Counter()):
        print(f"{folder}: {line}")
    return torch.stack([image / 255 if image.dtype == torch.uint8 else image for image in images])


def save_rows(rows: list[torch.Tensor], path: Path, scale: int):
    """Writes rows of images (n, C, H, W) in [0, 1] as one picture; short rows are filled up with white."""
    columns = max(len(row) for row in rows)
    white = torch.ones_like(rows[0][:1])
    tensors = torch.cat([torch.cat([row, *[white] * (columns - len(row))]) for row in rows])
    images = EtaDDIMPipeline.numpy_to_pil(tensors.cpu().permute(0, 2, 3, 1).numpy())
    images = [image.resize((scale * image.width, scale * image.height), 0) for image in images]
    picture_grid(images, len(rows), columns).save(path)
    print(f"  {path}")


def consistency(pipeline: EtaDDIMPipeline, args: argparse.Namespace):
    print("Consistency: the same x_T by S steps (rows), the last row by 1000")
    num_steps = [*args.num_inference_steps, min(1000, len(pipeline.scheduler))]
    settings = {"batch_size": args.num_images, "seed": args.seed, "eta": 0.0, "output_type": "pt"}
    rows = [pipeline(num_inference_steps=steps, **settings).images for steps in num_steps]
    others = (rows[-1] - rows[-1].roll(1, 0)).square().mean().sqrt()
    for steps, row in zip(num_steps[:-1], rows, strict=False):
        distance = (row - rows[-1]).square().mean().sqrt()
        print(
            f"  S = {steps}: RMS distance to the last row {distance:.4f}, {distance / others:.2f} of that of two images"
        )
    save_rows(rows, args.output_dir / "consistency.png", args.scale)


def interpolation(
    pipeline: EtaDDIMPipeline, unclipped: EtaDDIMPipeline, images: torch.Tensor, args: argparse.Namespace
):
    print("Interpolation: rows between two seeds, between two images of the folder; a grid between four seeds")
    settings = {"num_inference_steps": min(PICTURE_STEPS, len(pipeline.scheduler)), "output_type": "pt"}
    rows = [pipeline.interpolate(args.seed + k, args.seed + k + 1, 8, **settings).images for k in (0, 2)]
    array = images[:4].permute(0, 2, 3, 1).numpy()
    rows += unclipped.interpolate(array[:2], array[2:], 8, **settings).images.chunk(2)
    save_rows(rows, args.output_dir / "interpolation.png", args.scale)

    generators = [image_generators(args.seed + k, [0])[0] for k in range(4)]
    corners = [torch.randn(images[:1].shape, generator=generator) for generator in generators]
    fractions = torch.linspace(0, 1, 6)
    grid = slerp(slerp(corners[0], corners[1], fractions), slerp(corners[2], corners[3], fractions), fractions)
    square = pipeline(latents=grid.flatten(0, 2), eta=0.0, **settings).images
    save_rows(list(square.chunk(6)), args.output_dir / "interpolation_grid.png", args.scale)


def reconstruction(unclipped: EtaDDIMPipeline, images: torch.Tensor, args: argparse.Namespace):
    print(
        f"Reconstruction of {len(images)} images: mean squared error per pixel, images in [0, 1]; calls of the UNet a"
    )
    print("step; standard deviation of the latents, which is 1 for the noise that sampling starts from")
    print("  |    S | method      | error   | calls | latents |")
    shown = [images[: args.num_images]]
    for steps in args.num_inference_steps:
        for method in args.methods:
            back, latents, calls = [], [], 0
            for part in images.split(args.batch_size):
                round_trip = round_trip_of_diffusers if method == THEIRS else our_round_trip
                result, latent, model_calls = round_trip(unclipped, part.to(args.device), steps, method)
                back.append(result.cpu())
                latents.append(latent)
                calls += model_calls
            result = torch.cat(back)
            error, std = (result - images).square().mean(), torch.cat(latents).std()
            print(
                f"  | {steps:4} | {method:11} | {error:.1e} | {calls / steps / len(back):5.1f} | {std:7.2f} |",
                flush=True,
            )
            if steps == args.num_inference_steps[0]:
                shown.append(result[: args.num_images])
    save_rows(shown, args.output_dir / "reconstruction.png", args.scale)


def our_round_trip(pipeline: EtaDDIMPipeline, images: torch.Tensor, steps: int, method: str):
    """The images again, their latents, and the model calls of the inversion."""
    found = pipeline.invert(images, steps, method)
    call = {"method": "o_belm", "prev_latents": found.prev_latents} if method == "o_belm" else {"eta": 0.0}
    settings = {"num_inference_steps": steps, "latents": found.latents, "output_type": "pt", **call}
    return pipeline(**settings).images, found.latents, found.model_calls


@torch.no_grad()
def round_trip_of_diffusers(pipeline: EtaDDIMPipeline, images: torch.Tensor, steps: int, method: str):
    """The same by diffusers' own pair of schedulers."""
    states = [2 * images - 1]
    for scheduler_class in (DDIMInverseScheduler, DDIMScheduler):
        scheduler = scheduler_class.from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(steps)
        sample = states[-1]
        for t in scheduler.timesteps:
            sample = scheduler.step(pipeline.unet(sample, t).sample, t, sample).prev_sample
        states.append(sample)
    _, latents, result = states
    return (result / 2 + 0.5).clamp(0, 1), latents, steps


def editing(pipeline: EtaDDIMPipeline, images: torch.Tensor, args: argparse.Namespace):
    print("Editing: images; started from them with strength 0.5 and 0.8; their lower half, grey here, painted anew")
    images = images[: args.num_images]
    mask = torch.zeros_like(images[:1, :1])
    mask[:, :, mask.shape[2] // 2 :] = 1
    steps = min(PICTURE_STEPS, len(pipeline.scheduler))
    settings = {"num_inference_steps": steps, "image": images, "seed": args.seed}
    rows = [images]
    rows += [pipeline(strength=strength, output_type="pt", **settings).images for strength in (0.5, 0.8)]
    rows.append(images * (1 - mask) + 0.5 * mask)
    rows += [pipeline(mask=mask, num_resamples=n, eta=1.0, output_type="pt", **settings).images for n in (1, 5)]
    save_rows(rows, args.output_dir / "editing.png", args.scale)


def main(argv: list[str] | None = None) -> Path:
    """Writes the pictures, prints the figures, and returns the folder."""
    parser = Parser(
        description="Consistency, interpolation, reconstruction and editing with a saved pipeline.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("pipeline", help="folder or Hub id of an EtaDDIMPipeline")
    parser.add_argument("image_dir", type=Path, help="folder of images that the model was not trained on")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/inversion"), help="folder for the pictures")
    parser.add_argument(
        "--num_inference_steps", type=int, nargs="+", default=[10, 20, 50, 100], help="numbers of steps S, ascending"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to do")
    parser.add_argument(
        "--methods", nargs="+", choices=(*METHODS, THEIRS), default=METHODS, help="inversions of the reconstruction"
    )
    parser.add_argument("--timestep_spacing", choices=TIMESTEP_SPACINGS, help="instead of the pipeline's own")
    parser.add_argument("--num_images", type=int, default=8, help="images in a row of the pictures, at least 4")
    parser.add_argument(
        "--num_reconstructed",
        type=int,
        help=f"images in the reconstruction error (default: {MOST_RECONSTRUCTED}, or as many as there are)",
    )
    parser.add_argument("--batch_size", type=int, default=100, help="images at a time, for the reconstruction error")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise and of the choice of images")
    parser.add_argument("--scale", type=int, default=2, help="each pixel becomes that many pixels wide and high")
    add_device(parser, "where to compute")
    args = parser.parse_args(argv)
    for name, least in (("num_images", 4), ("num_reconstructed", args.num_images), ("batch_size", 1), ("scale", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, but is {getattr(args, name)}")
    if min(args.num_inference_steps) < 1 or sorted(set(args.num_inference_steps)) != args.num_inference_steps:
        parser.error(f"--num_inference_steps must be ascending, at least 1, but are {args.num_inference_steps}")

    pipeline = EtaDDIMPipeline.from_pretrained(args.pipeline).to(args.device)
    config = pipeline.unet.config
    is_conditional = config.num_class_embeds is not None or pipeline.condition_channels
    if is_conditional or config.sample_size is None or pipeline.image_channels not in PICTURE_CHANNELS:
        parser.error(
            f"pipeline must have no classes or condition, a `sample_size` and 1, 3 or 4 channels: {args.pipeline}"
        )
    if args.num_inference_steps[-1] > len(pipeline.scheduler):
        parser.error(
            f"--num_inference_steps must be at most {len(pipeline.scheduler)}, but are {args.num_inference_steps}"
        )
    spacing = args.timestep_spacing or pipeline.scheduler.config.timestep_spacing
    if spacing == "fitted":  # whose steps have a history, and cannot be inverted
        spacing = "trailing"
    if THEIRS in args.methods and spacing not in ("leading", "trailing"):
        parser.error(f"--methods {THEIRS} knows leading and trailing timesteps only, but the spacing is {spacing}")
    pipeline.scheduler = EtaDDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing=spacing, solver_order=1
    )
    # clipping x_0 forgets where a sample came from, so images are inverted without, as in the paper
    scheduler = EtaDDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)
    unclipped = EtaDDIMPipeline(unet=pipeline.unet, scheduler=scheduler)
    for pipe in (pipeline, unclipped):
        pipe.set_progress_bar_config(leave=False)
    try:
        images = load_images(pipeline, args)
    except ValueError as error:
        parser.error(str(error))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if "consistency" in args.parts:
        consistency(pipeline, args)
    if "interpolation" in args.parts:
        interpolation(pipeline, unclipped, images, args)
    if "editing" in args.parts:
        editing(pipeline, images, args)
    if "reconstruction" in args.parts:
        reconstruction(unclipped, images, args)
    return args.output_dir


if __name__ == "__main__":
    run(main)
