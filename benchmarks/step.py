# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Times one step of EtaDDIMScheduler against diffusers' DDIMScheduler, alternately in one run.

    python benchmarks/step.py --device cpu
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers import DDIMScheduler

from ddim_scheduler import EtaDDIMScheduler

from report import update

SHAPES = ((1, 3, 8, 8), (4, 4, 64, 64), (64, 3, 32, 32), (16, 4, 128, 128))
REPEATS = 15
SECONDS_PER_REPEAT = 0.02


def main(argv: list[str] | None = None) -> list[float]:
    """Prints a table and returns the ratios in it."""
    parser = argparse.ArgumentParser(description="Time a scheduler step against diffusers', alternately.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--update", type=Path, help="document to put the table into, between its markers")
    args = parser.parse_args(argv)
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"

    ratios, lines = [], []
    for shape in SHAPES:
        for eta in (0.0, 1.0):
            model_output, sample = torch.randn(2, *shape, device=args.device)
            steps = []
            for scheduler in (DDIMScheduler(), EtaDDIMScheduler()):
                scheduler.set_timesteps(50)
                steps.append(lambda s=scheduler, m=model_output, x=sample, e=eta: s.step(m, 500, x, eta=e))
            times = alternate(*steps, device=args.device)
            per_round = sorted(theirs / ours for theirs, ours in times)
            theirs, ours = (statistics.median(column) for column in zip(*times, strict=True))
            ratios.append(statistics.median(per_round))
            spread = f"{per_round[len(per_round) // 4]:.2f} to {per_round[-len(per_round) // 4]:.2f}"
            lines.append(
                f"| {shape} | {eta:.0f} | {theirs * 1e6:.0f} | {ours * 1e6:.0f} | {ratios[-1]:.2f} | {spread} |"
            )
    table = (
        f"{name}; torch {torch.__version__}, diffusers {diffusers.__version__}; float32, clip_sample, int timestep; "
        f"medians of {REPEATS} alternating rounds, the middle half as spread.\n\n"
        "| sample | eta | diffusers, µs | ours, µs | ratio | spread of the ratio |\n|---|---|---|---|---|---|\n"
    )
    table += "\n".join(lines) + "\n"
    print(table, end="")
    if args.update is not None:
        update(args.update, f"step-{args.device}", table)
    return ratios


def alternate(*functions: Callable, device: str) -> list[tuple[float, ...]]:
    """Seconds of one call of each function: a tuple for each round, in which they take turns."""
    counts = [max(1, round(SECONDS_PER_REPEAT / seconds(f, 20, device))) for f in functions]
    return [tuple(seconds(f, n, device) for f, n in zip(functions, counts, strict=True)) for _ in range(REPEATS)]


def seconds(function: Callable, count: int, device: str) -> float:
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        function()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()
