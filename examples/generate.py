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
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers import UNet2DModel
from tqdm.auto import tqdm

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, image_generators
from ddim_scheduler.scheduling_ddim import TIMESTEP_SPACINGS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write N images of a saved pipeline, shared over all processes. Start with `accelerate launch`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("pipeline", help="folder or Hub id of an unconditional or class-conditional pipeline")
    parser.add_argument(
        "--output_dir", type=Path, required=True, default=argparse.SUPPRESS, help="folder of the images"
    )
    parser.add_argument("--num_images", type=int, default=1000, help="number of images over all processes")
    parser.add_argument("--batch_size", type=int, default=64, help="images per process and model call")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="sampler steps")
    parser.add_argument("--timestep_spacing", choices=TIMESTEP_SPACINGS, help="grid of timesteps, instead of its own")
    parser.add_argument(
        "--clip_sample", action=argparse.BooleanOptionalAction, help="whether to clip x_0, instead of its own setting"
    )
    parser.add_argument(
        "--num_classes",
        type=int,
        help="classes that the images of a class-conditional UNet take in turn, instead of all but its last, which "
        "means no class",
    )
    parser.add_argument("--eta", type=float, default=0.0, help="0: deterministic, 1: as random as DDPM")
    parser.add_argument("--sigma_hat", action="store_true", help="noise of std sigma-hat instead, with --eta 1")
    parser.add_argument(
        "--scheduler",
        default="EtaDDIMScheduler",
        choices=("EtaDDIMScheduler", "DDIMScheduler"),
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
    scheduler_class = EtaDDIMScheduler if args.scheduler == "EtaDDIMScheduler" else diffusers.DDIMScheduler
    config = pipeline.unet.config
    if scheduler_class is diffusers.DDIMScheduler and config.out_channels != config.in_channels:
        raise ValueError(f"`scheduler` DDIMScheduler knows no learned variance, as in the model of {args.pipeline}.")
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **changes)
    pipeline.scheduler.set_timesteps(args.num_inference_steps)  # refuses what it cannot do
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weights_digest(unet: UNet2DModel) -> str:
    """SHA-256 of the weights: a model that was trained further has another one."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def image_path(output_dir: Path, k: int) -> Path:
    return output_dir / f"{k:06d}.png"


def check_output_dir(output_dir: Path, num_images: int, settings: dict[str, Any]):
    """Refuses a folder that holds anything but images of the same settings."""
    record = output_dir / "settings.json"
    names = {path.name for path in output_dir.glob("*") if not path.name.startswith("unfinished-")}
    if names and not record.is_file():
        raise ValueError(f"`output_dir` holds other files and no settings.json: {output_dir}")
    if record.is_file():
        try:
            former = dict(json.loads(record.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{record} cannot be read, take another folder or delete it: {error}") from error
        # the model may lie elsewhere by now: its weights tell which it is
        for name in sorted((former.keys() | settings.keys()) - {"pipeline"}):
            if former.get(name) != settings.get(name):
                raise ValueError(
                    f"`{name}` is {settings.get(name)!r}, but {former.get(name)!r} for the images in {output_dir}: "
                    "take another folder, or delete it."
                )
    surplus = names - {"settings.json", *(image_path(output_dir, k).name for k in range(num_images))}
    if surplus:
        raise ValueError(f"`output_dir` holds more than {num_images} images and settings.json: {sorted(surplus)[:3]}")


def write(path: Path, rank: int, save):
    """Lets `save` write to a file of another name and renames it, so that one with a proper name is whole."""
    unfinished = path.with_name(f"unfinished-{rank}-{os.getpid()}")
    with unfinished.open("wb") as file:
        save(file)
    try:
        unfinished.replace(path)
    except FileNotFoundError:  # another run in this folder was the first to end, and has cleaned up
        if not path.is_file():
            raise


def main(argv: list[str] | None = None) -> int:
    """Writes the images that are missing, and returns the number of those that this process made."""
    args = parse_args(argv)
    # several CPU processes form a group only if they are told that they are on the CPU
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    rank, is_main = state.process_index, state.is_main_process

    # 1. everything that can be refused, before anything is written
    pipeline = load_pipeline(args)
    num_embeds = pipeline.unet.config.num_class_embeds
    num_classes = args.num_classes or (num_embeds and max(1, num_embeds - 1))
    if num_classes and num_classes > (num_embeds or 0):
        raise ValueError(f"`num_classes` is {num_classes}, but the UNet has {num_embeds or 0} classes.")
    names = ("pipeline", "num_inference_steps", "eta", "scheduler", "seed", "dtype")
    settings = {"num_classes": num_classes, **{name: getattr(args, name) for name in names}}
    settings["weights"] = weights_digest(pipeline.unet)
    config = {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    settings |= {f"scheduler_config.{name}": value for name, value in json.loads(json.dumps(config)).items()}
    check_output_dir(args.output_dir, args.num_images, settings)
    state.wait_for_everyone()
    if is_main:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        try:
            with (args.output_dir / "settings.json").open("x") as file:
                file.write(json.dumps(settings, indent=2) + "\n")
        except FileExistsError:
            pass
    state.wait_for_everyone()
    check_output_dir(args.output_dir, args.num_images, settings)  # another run may have been the first

    # 2. the batches are the same ones in every run, so that rounding is as well; each process has its share of them
    batches = [
        range(first, min(first + args.batch_size, args.num_images))
        for first in range(0, args.num_images, args.batch_size)
    ][rank :: state.num_processes]
    missing = {k for batch in batches for k in batch if not image_path(args.output_dir, k).is_file()}
    pipeline.to(state.device)
    share = "Images" if state.num_processes == 1 else f"Images of process 1 of {state.num_processes}"
    progress = tqdm(total=len(missing), desc=share, disable=not is_main)
    start = time.perf_counter()
    for batch in batches:
        if missing.isdisjoint(batch):
            continue
        images = pipeline(
            batch_size=len(batch),
            num_inference_steps=args.num_inference_steps,
            eta=args.eta,
            generator=image_generators(args.seed, batch),
            class_labels=None if num_classes is None else [k % num_classes for k in batch],
            output_type="np",
        ).images
        if not np.isfinite(images).all():
            raise ValueError(f"Images {batch[0]} to {batch[-1]} are not finite numbers.")
        for k, image in zip(batch, pipeline.numpy_to_pil(images), strict=True):
            if k in missing:
                write(image_path(args.output_dir, k), rank, lambda file, image=image: image.save(file, "png"))
                progress.update()
    progress.close()
    seconds = time.perf_counter() - start

    # 3. exactly N files, and the one file of all
    state.wait_for_everyone()
    if is_main:
        for path in args.output_dir.glob("unfinished-*"):
            path.unlink(missing_ok=True)
        if args.npz is not None:
            paths = [image_path(args.output_dir, k) for k in range(args.num_images)]
            arrays = [np.asarray(PIL.Image.open(path)) for path in paths]
            stacked = np.stack(arrays).reshape(len(arrays), *arrays[0].shape[:2], -1)
            args.npz.parent.mkdir(parents=True, exist_ok=True)
            write(args.npz, rank, lambda file: np.savez(file, stacked))
        made = f"this process made {len(missing)} of them in {seconds:.1f} s"
        print(f"{args.num_images} images are in {args.output_dir}; {made}")
    state.wait_for_everyone()
    return len(missing)


if __name__ == "__main__":
    try:
        main()
    except (NotImplementedError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
