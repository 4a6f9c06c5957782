# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Writes N images of a saved pipeline as PNG files, shared over all processes and machines.

    accelerate launch examples/generate.py outputs/digits --num_images 1000 --output_dir outputs/generated

Image k depends on the seed and k alone and is the file `k.png`, whichever process makes it. A run that was stopped goes
on where it was when it is started again, with any number of processes; `settings.json` keeps images of other settings
out of the folder. Machines must share the folder.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers import DDIMScheduler

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
from ddim_scheduler.command_line import Parser, run
from ddim_scheduler.generation import generate_images, read_conditions, use_scheduler, write_npz
from ddim_scheduler.scheduling_ddim import TIMESTEP_SPACINGS

SCHEDULERS = {"EtaDDIMScheduler": EtaDDIMScheduler, "DDIMScheduler": DDIMScheduler}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Write N images of a saved pipeline, shared over all processes. Start with `accelerate launch`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("pipeline", help="folder or Hub id of an EtaDDIMPipeline")
    parser.add_argument(
        "--output_dir", type=Path, required=True, default=argparse.SUPPRESS, help="folder of the images"
    )
    parser.add_argument("--num_images", type=int, default=1000, help="number of images over all processes")
    parser.add_argument("--batch_size", type=int, default=64, help="images per process and model call")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="sampler steps")
    parser.add_argument("--timestep_spacing", choices=(*TIMESTEP_SPACINGS, "fitted"), help="grid, instead of its own")
    parser.add_argument(
        "--clip_sample", action=argparse.BooleanOptionalAction, help="whether to clip x_0, instead of its own setting"
    )
    parser.add_argument(
        "--num_classes",
        type=int,
        help="classes that the images of a class-conditional UNet take in turn, instead of all but its last, which "
        "means no class",
    )
    parser.add_argument(
        "--class_labels", type=int, nargs="+", help="classes, by number, that the images take in turn, instead"
    )
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="classifier-free guidance; 1: none")
    parser.add_argument(
        "--condition_dir",
        type=Path,
        help="folder or zip archive of the pictures that the images are made from, in turn",
    )
    parser.add_argument("--eta", type=float, default=0.0, help="0: deterministic, 1: as random as DDPM")
    parser.add_argument("--sigma_hat", action="store_true", help="noise of std sigma-hat instead, with --eta 1")
    parser.add_argument(
        "--scheduler",
        default="EtaDDIMScheduler",
        choices=SCHEDULERS,
        help="the sampler: this project's or the one in diffusers",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the set of images")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the model")
    parser.add_argument("--npz", type=Path, help="also write all images to this file: `arr_0`, uint8, (N, H, W, C)")
    args = parser.parse_args(argv)
    for name in ("num_images", "batch_size", "num_inference_steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(args, name)}")
    if args.num_classes is not None and args.num_classes < 1:
        parser.error(f"--num_classes must be at least 1, but is {args.num_classes}")
    if args.num_classes is not None and args.class_labels is not None:
        parser.error("give either --num_classes or --class_labels")
    if not math.isfinite(args.guidance_scale):
        parser.error(f"--guidance_scale must be finite, but is {args.guidance_scale}")
    if args.seed < 0:
        parser.error(f"--seed must not be negative, but is {args.seed}")
    if not 0 <= args.eta <= 1:
        parser.error(f"--eta must be in [0, 1], but is {args.eta}")
    if args.sigma_hat and (args.eta != 1 or args.scheduler != "EtaDDIMScheduler"):
        parser.error("--sigma_hat needs --eta 1 and the EtaDDIMScheduler")
    if args.npz is not None and args.npz.suffix != ".npz":
        parser.error(f"--npz must end in .npz, but is {args.npz}")
    if args.npz is not None and args.output_dir.resolve() in args.npz.resolve().parents:
        parser.error(f"--npz must be outside --output_dir, which holds images alone, but is {args.npz}")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        parser.error(f"--output_dir is no folder: {args.output_dir}")
    return args


def load_pipeline(args: argparse.Namespace) -> EtaDDIMPipeline:
    """The pipeline with the sampler that was asked for."""
    pipeline = EtaDDIMPipeline.from_pretrained(args.pipeline, torch_dtype=getattr(torch, args.dtype))
    changes: dict[str, Any] = {}
    for name in ("timestep_spacing", "clip_sample"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    if args.sigma_hat:
        changes["variance_type"] = "sigma_hat"
    use_scheduler(pipeline, SCHEDULERS[args.scheduler], **changes)
    return pipeline


def main(argv: list[str] | None = None) -> int:
    """Writes the images that are missing, and returns the number of those that this process made."""
    args = parse_args(argv)
    # several CPU processes form a group only if they are told that they are on the CPU
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    pipeline = load_pipeline(args)
    made = generate_images(
        pipeline,
        args.output_dir,
        args.num_images,
        name=args.pipeline,
        batch_size=args.batch_size,
        num_inference_steps=args.num_inference_steps,
        eta=args.eta,
        seed=args.seed,
        num_classes=args.num_classes,
        class_labels=args.class_labels,
        guidance_scale=args.guidance_scale,
        conditions=read_conditions(args.condition_dir, pipeline),
        state=state,
    )
    if args.npz is not None and state.is_main_process:
        write_npz(args.output_dir, args.num_images, args.npz)
    state.wait_for_everyone()
    return made


if __name__ == "__main__":
    run(main)
