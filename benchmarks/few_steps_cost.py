# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
What a history costs: a step of order 1, 2, 3 and a fitted one by turns, plain and compiled, and the time of a fit.

    python benchmarks/few_steps_cost.py --update RESULTS.md
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
from ddim_scheduler.command_line import run
from ddim_scheduler.fitting import fit_sampler

from report import check, update, versions
from step import ROUNDS, alternate, run_loop

MODEL = Path(__file__).parents[1] / "models" / "digits"
SHAPES = ((1, 4, 64, 64), (64, 3, 32, 32))
NUM_STEPS, SEEDS = 10, 16


def cost_table(fitted: EtaDDIMScheduler) -> str:
    """Microseconds of a step in a loop of ten, without a model."""
    plain = {"timestep_spacing": "trailing", "fitted_tables": None}
    schedulers: dict[str, Any] = {
        f"order {k}": EtaDDIMScheduler.from_config(fitted.config, **plain, solver_order=k) for k in (1, 2, 3)
    }
    schedulers["fitted"] = fitted
    text = f"| sample | step | {' | '.join(schedulers)} |\n|---|---|{'---|' * len(schedulers)}\n"
    for shape in SHAPES:
        model_output, sample = torch.randn(2, *shape)
        for name in ("plain", "compiled"):
            torch._dynamo.reset()
            torch._dynamo.config.recompile_limit = 32  # the four share it
            loops = []
            for scheduler in schedulers.values():
                scheduler.set_timesteps(NUM_STEPS)
                step = torch.compile(scheduler.step, fullgraph=True) if name == "compiled" else None
                loops.append(partial(run_loop, scheduler, model_output, sample, step))
            times = [statistics.median(t) / NUM_STEPS for t in zip(*alternate(*loops, device="cpu"), strict=True)]
            text += f"| {shape} | {name} | {' | '.join(f'{1e6 * t:.0f} µs' for t in times)} |\n"
    return text


def main(argv: list[str] | None = None) -> str:
    """Prints the figures, and returns them."""
    parser = argparse.ArgumentParser(description="Time steps with a history, and a fit.")
    parser.add_argument("--update", type=Path, help="document to put the table into, between its markers")
    args = parser.parse_args(argv)
    check(args.update, "few-steps-cost")
    pipe = EtaDDIMPipeline.from_pretrained(MODEL)
    text = (
        f"{versions('cpu')}; float32, eta = 0, a step of a loop of {NUM_STEPS} without a model, medians of {ROUNDS} "
        f"alternating rounds.\n\n{cost_table(pipe.scheduler)}"
    )
    pipe.set_progress_bar_config(disable=True)
    start = time.perf_counter()
    pipe(batch_size=SEEDS, num_inference_steps=NUM_STEPS, seed=0)
    call = time.perf_counter() - start
    start = time.perf_counter()
    fit_sampler(pipe, [NUM_STEPS], seeds=SEEDS)
    fit = time.perf_counter() - start
    text += (
        f"\n`fit_sampler(pipe, [{NUM_STEPS}])` of `models/digits`, with its defaults of {SEEDS} trajectories and 80 "
        f"steps of a teacher: {fit:.0f} s, where sampling {SEEDS} images in {NUM_STEPS} steps takes {call:.1f} s.\n"
    )
    print(text)
    update(args.update, "few-steps-cost", text)
    return text


if __name__ == "__main__":
    run(main)
