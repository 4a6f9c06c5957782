# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Images per second of EtaDDIMPipeline against diffusers' DDIMPipeline, alternately in one run, with the same weights.

    python benchmarks/pipeline.py --device cpu
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffusers
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
from ddim_scheduler.command_line import add_device, run

from report import check, update, versions
from step import ratio_of

# name: settings of the UNet, then images and steps of a call on a CPU and on a GPU
MODELS = {
    "that of `make demo`, 0.64 M parameters, 16x16": (
        {
            "sample_size": 16,
            "in_channels": 1,
            "out_channels": 1,
            "layers_per_block": 1,
            "block_out_channels": (16, 32, 64),
            "norm_num_groups": 16,
            "down_block_types": ("DownBlock2D",) * 3,
            "up_block_types": ("UpBlock2D",) * 3,
        },
        {"cpu": (16, 20), "cuda": (256, 50)},
    ),
    "CIFAR-10 size, 35.75 M parameters, 32x32": (
        {
            "sample_size": 32,
            "block_out_channels": (128, 256, 256, 256),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": None,
        },
        {"cpu": (2, 5), "cuda": (256, 50)},
    ),
}
ROUNDS = 12


def main(argv: list[str] | None = None) -> list[float]:
    """Prints a table and returns the ratios of the eager pipelines."""
    parser = argparse.ArgumentParser(description="Time the pipeline against diffusers', alternately.")
    add_device(parser, "cpu or cuda", "cpu")
    parser.add_argument("--update", type=Path, help="document to put the table into, between its markers")
    args = parser.parse_args(argv)
    check(args.update, f"pipeline-{args.device}")
    diffusers.logging.set_verbosity_error()
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32

    ratios, lines = [], []
    for name, (settings, sizes) in MODELS.items():
        torch.manual_seed(0)
        unet = UNet2DModel(**settings).eval().to(args.device, dtype)
        fast_unet = copy.deepcopy(unet).to(memory_format=torch.channels_last)
        compiled = torch.compile(unet)
        images, steps = sizes[args.device]
        calls = [
            call_of(DDIMPipeline(unet, DDIMScheduler()), images, steps),
            call_of(EtaDDIMPipeline(unet, EtaDDIMScheduler()), images, steps),
            call_of(EtaDDIMPipeline(fast_unet, EtaDDIMScheduler()), images, steps),
            call_of(EtaDDIMPipeline(compiled, EtaDDIMScheduler()), images, steps),
        ]
        for call in calls:
            call()
        rounds = []
        for i in range(ROUNDS):  # every other one backwards, since what ran before has an effect
            order = range(len(calls)) if i % 2 == 0 else reversed(range(len(calls)))
            times = {k: seconds(calls[k]) for k in order}
            rounds.append([times[k] for k in range(len(calls))])
        theirs, *ours = (list(column) for column in zip(*rounds, strict=True))
        compared = [ratio_of(theirs, times) for times in ours]
        cells = [f"{images / compared[0].theirs:.2f}", *(f"{images / r.ours:.2f} | {r}" for r in compared)]
        lines.append(f"| {name} | {images} x {steps} | {' | '.join(cells)} |")
        ratios.append(compared[0].median)
    table = (
        f"{versions(args.device)}; {dtype}, random weights; medians "
        f"of {ROUNDS} alternating rounds, the middle half of the rounds in brackets; a ratio above 1 means faster than "
        "diffusers' eager pipeline.\n\n"
        "| UNet | images x steps | diffusers, images/s | ours, images/s | ratio | channels_last, images/s | ratio | "
        "compiled UNet, images/s | ratio |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    table += "\n".join(lines) + "\n"
    print(table, end="")
    update(args.update, f"pipeline-{args.device}", table)
    return ratios


def call_of(pipeline, images: int, steps: int) -> Callable:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return partial(pipeline, images, generator=generator, num_inference_steps=steps, output_type="np")


def seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()  # ends on the host, with arrays
    return time.perf_counter() - start


if __name__ == "__main__":
    run(main)
