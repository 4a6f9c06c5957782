# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Times `python -m ddim_scheduler.training` against a minimal loop that does what diffusers' example does: float32, AdamW
as torch has it by default, EMA, and each image decoded and transformed anew in every epoch. Both train the same UNet on
the same images, in processes of their own that take turns.

    python benchmarks/training.py --train_data_dir data/digits/train
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel

from ddim_scheduler import command_line
from ddim_scheduler.training import build_unet, find_folder_images, parse_args, train_unconditional

from report import check, update, versions

MODELS = {
    "demo": "--resolution 16 --block_out_channels 16 32 64 --layers_per_block 1 --attention_resolutions",
    "CIFAR-size": "--resolution 32 --channels 3 --block_out_channels 128 256 256 256 --attention_resolutions 16",
}
BATCH_SIZES = {"cpu": {"demo": 32, "CIFAR-size": 8}, "cuda": {"demo": 1024, "CIFAR-size": 256}}
WARM_UP = {"cpu": 2, "cuda": 20}
STEPS = {"cpu": {"demo": 60, "CIFAR-size": 4}, "cuda": {"demo": 100, "CIFAR-size": 100}}  # multiples of the warm-up


def main(argv: list[str] | None = None) -> dict[tuple[str, str], float]:
    """Prints a table and returns the ratios in it."""
    parser = argparse.ArgumentParser(description="Time the training script against a minimal loop, alternately.")
    parser.add_argument("--train_data_dir", default="data/digits/train", help="folder of images, a batch at least")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to train")
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS], help="what to train")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each")
    parser.add_argument("--update", type=Path, help="document to put the table into, between its markers")
    parser.add_argument("--variant", help=argparse.SUPPRESS)  # a process of this benchmark itself
    args = parser.parse_args(argv)
    check(args.update, f"training-{args.device}")
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, but is {args.rounds}")
    if args.variant is not None:
        result = run(args.variant, args.models[0], args.train_data_dir, args.device)
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(result))
        return {}

    ratios, lines = {}, []
    for model in args.models:
        variants = ["loop", "script, fp32", "script, bf16"]
        variants += ["script, bf16, compiled"] if args.device == "cuda" else []
        runs = alternate(variants, model, args, threads=None)
        loop = runs.pop("loop")
        lines.append(row(model, "minimal loop, fp32", loop, loop))
        for variant, results in runs.items():
            lines.append(row(model, variant, results, loop))
            ratios[model, variant] = statistics.median(per_round(results, loop))
    table = (
        f"{versions(args.device)}; medians of {args.rounds} alternating "
        "rounds, lowest and highest ratio as spread; memory is the peak of the process.\n\n"
        "| model | | images/s | ratio | spread | memory, MB |\n|---|---|---|---|---|---|\n"
    )
    table += "\n".join(lines) + "\n"
    if args.device == "cpu":
        runs = alternate(["script, fp32", "script, fp32, 2 processes"], args.models[0], args, threads=1)
        ideal = per_round(runs["script, fp32, 2 processes"], runs["script, fp32"])
        table += (
            f"\nTwo processes of one thread each against one ({args.models[0]} model, the same batch in each): "
            f"{statistics.median(ideal) / 2:.2f} of ideal, {min(ideal) / 2:.2f} to {max(ideal) / 2:.2f}.\n"
        )
        ratios["2 processes", "of ideal"] = statistics.median(ideal) / 2
    print(table, end="")
    update(args.update, f"training-{args.device}", table)
    return ratios


def alternate(variants: list[str], model: str, args: argparse.Namespace, threads: int | None) -> dict[str, list[dict]]:
    """The results of each variant, which take turns."""
    environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
    results: dict[str, list[dict]] = {variant: [] for variant in variants}
    for _ in range(args.rounds):
        for variant in variants:
            command = [sys.executable]
            if "2 processes" in variant:
                command += ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-endpoint", "localhost:0"]
                command += ["--rdzv-backend", "c10d"]
            command += [__file__, "--variant", variant, "--models", model, "--train_data_dir", args.train_data_dir]
            command += ["--device", args.device]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{variant}: {done.stderr}")
            results[variant].append(json.loads(done.stdout.splitlines()[-1]))
    return results


def per_round(results: list[dict], others: list[dict]) -> list[float]:
    return [a["images_per_second"] / b["images_per_second"] for a, b in zip(results, others, strict=True)]


def row(model: str, name: str, results: list[dict], loop: list[dict]) -> str:
    ratios = per_round(results, loop)
    speed, memory = (statistics.median(r[key] for r in results) for key in ("images_per_second", "megabytes"))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"| {model} | {name} | {speed:.1f} | {statistics.median(ratios):.2f} | {spread} | {memory:.0f} |"


# ------------------------------------------------------------------------------------------ one process of a benchmark


def run(variant: str, model: str, train_data_dir: str, device: str) -> dict[str, float]:
    batch_size, steps = BATCH_SIZES[device][model], STEPS[device][model]
    arguments = [*MODELS[model].split(), "--train_data_dir", train_data_dir, "--train_batch_size", str(batch_size)]
    arguments += ["--use_ema", "--random_flip", "--max_train_steps", str(WARM_UP[device] + steps + 1)]
    train = minimal_loop if variant == "loop" else script
    if "compiled" in variant:
        os.environ["ACCELERATE_DYNAMO_BACKEND"] = "INDUCTOR"
        arguments += ["--channels_last"]
    arguments += ["--mixed_precision", "bf16" if "bf16" in variant else "no"]
    seconds = train(arguments, WARM_UP[device], steps)
    if device == "cuda":
        megabytes = torch.cuda.max_memory_allocated() / 1e6
    else:
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    return {"images_per_second": num_processes * batch_size * steps / seconds, "megabytes": megabytes}


def script(arguments: list[str], warm_up: int, steps: int) -> float:
    """Seconds that the script takes for the steps after the warm-up. Each line of its log waits for the device."""
    times: dict[int, float] = {}
    Accelerator.log = lambda self, values, step: times.setdefault(step, time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        arguments += ["--logging_steps", str(warm_up), "--logger", "none", "--output_dir", folder]
        train_unconditional.main([*arguments, "--eval_batch_size", "1", "--ddpm_num_inference_steps", "1"])
    return times[warm_up + steps] - times[warm_up]


def minimal_loop(arguments: list[str], warm_up: int, steps: int) -> float:
    """The same for a loop without what makes the script faster."""
    args = parse_args(arguments)
    accelerator = Accelerator(mixed_precision="no")
    images = ImagesFromFiles(args)
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000)
    unet = build_unet(
        args.resolution,
        images.channels,
        None,
        block_out_channels=args.block_out_channels,
        layers_per_block=args.layers_per_block,
        attention_resolutions=args.attention_resolutions,
    )
    ema = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    ema.to(accelerator.device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    loader = torch.utils.data.DataLoader(images, args.train_batch_size, shuffle=True, drop_last=True)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)
    step, start = 0, 0.0
    while True:
        for clean in loader:
            noise = torch.randn_like(clean)
            timesteps = torch.randint(1000, (len(clean),), device=clean.device)
            prediction = unet(noise_scheduler.add_noise(clean, noise, timesteps), timesteps).sample
            loss = F.mse_loss(prediction.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(unet.parameters())
            loss.item()  # for the progress bar
            step += 1
            if step == warm_up:
                start = time.perf_counter()
            if step == warm_up + steps:
                return time.perf_counter() - start


class ImagesFromFiles(torch.utils.data.Dataset):
    """Decodes, scales, crops and mirrors an image each time it is asked for."""

    def __init__(self, args: argparse.Namespace):
        self.paths = find_folder_images(args.train_data_dir).items
        if len(self.paths) < args.train_batch_size:
            raise ValueError(f"--train_data_dir holds {len(self.paths)} images, less than {args.train_batch_size}")
        self.size, self.channels = args.resolution[0], args.channels or 1

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with PIL.Image.open(self.paths[index]) as file:
            image = file.convert("RGB" if self.channels == 3 else "L")
        scale = self.size / min(image.size)
        image = image.resize([round(scale * n) for n in image.size], PIL.Image.Resampling.BILINEAR)
        left, top = (int(torch.randint(n - self.size + 1, ())) for n in image.size)
        pixels = np.asarray(image.crop((left, top, left + self.size, top + self.size)), dtype=np.float32) / 255
        tensor = torch.from_numpy(pixels).view(self.size, self.size, -1).permute(2, 0, 1)
        return (tensor.flip(-1) if torch.rand(()) < 0.5 else tensor) * 2 - 1


if __name__ == "__main__":
    command_line.run(main)
