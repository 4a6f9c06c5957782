# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Times a step of EtaFlowMatchScheduler against diffusers' FlowMatchEulerDiscreteScheduler, alternately in one run, by the
time of the process, and counts the compilations of a loop.

    python benchmarks/flow_step.py --update RESULTS.md
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ddim_scheduler import EtaFlowMatchScheduler

from report import update, versions
from step import Ratio, ratio_of

SHAPES = ((1, 16, 32, 32), (1, 16, 128, 128), (4, 16, 128, 128))
STEPS = 28
ROUNDS = 15
SECONDS_PER_ROUND = 0.1


def loop(scheduler, model_output: torch.Tensor, sample: torch.Tensor, **arguments) -> Callable[[], None]:
    """A function that makes all steps of the grid; the built-in counts them, so that it must begin anew."""

    def run():
        scheduler.set_begin_index(0)
        scheduler._step_index = None
        for t in scheduler.timesteps:
            scheduler.step(model_output, t, sample, return_dict=False, **arguments)

    return run


def seconds(function: Callable[[], None], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        function()
    return (time.process_time() - start) / count / STEPS


def compare(theirs: Callable[[], None], ours: Callable[[], None], less: Callable[[], None] | None = None) -> Ratio:
    """The ratio of two loops, per step; the time of `less` is taken off both."""
    functions = [theirs, ours, *([] if less is None else [less])]
    counts = [max(1, round(SECONDS_PER_ROUND / STEPS / max(seconds(f, 2), 1e-6))) for f in functions]
    rounds = [[seconds(f, n) for f, n in zip(functions, counts, strict=True)] for _ in range(ROUNDS)]
    times = [[row[i] - (row[2] if less else 0.0) for row in rounds] for i in range(2)]
    return ratio_of(*times)


def table() -> str:
    lines = ["| sample | eta | diffusers, µs | ours, µs | ratio |", "|---|---|---|---|---|"]
    for shape in SHAPES:
        sample, model_output = torch.randn(2, *shape)
        generator = torch.Generator().manual_seed(0)

        def draw(shape=shape, generator=generator):
            for _ in range(STEPS):
                torch.randn(shape, generator=generator)

        for eta in (0, 1):
            given = {"stochastic_sampling": True} if eta else {}
            schedulers = FlowMatchEulerDiscreteScheduler(shift=3.0, **given), EtaFlowMatchScheduler(shift=3.0, eta=eta)
            for scheduler in schedulers:
                scheduler.set_timesteps(STEPS)
            arguments = {"generator": generator} if eta else {}
            loops = [loop(scheduler, model_output, sample, **arguments) for scheduler in schedulers]
            ratio = compare(*loops, less=draw if eta else None)
            lines.append(f"| {shape} | {eta} | {ratio.theirs * 1e6:.0f} | {ratio.ours * 1e6:.0f} | {ratio} |")
    return "\n".join(lines) + "\n"


def compilations() -> int:
    """Of the step in a loop."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    scheduler = EtaFlowMatchScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    step = torch.compile(scheduler.step, fullgraph=True)
    sample = torch.randn(SHAPES[0])
    for t in scheduler.timesteps:
        sample = step(sample, t, sample, return_dict=False)[0]
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def main(argv: list[str] | None = None) -> str:
    """Prints the table and returns it."""
    parser = argparse.ArgumentParser(description="Time the flow scheduler's step against diffusers', alternately.")
    parser.add_argument("--update", type=Path, help="document to put the table into, between its markers")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.empty(31 * 2**20, dtype=torch.uint8)  # as in step.py: malloc then keeps what is freed
    result = (
        f"{versions('cpu')}; float32, {STEPS} timesteps, tuples; process time, medians of {ROUNDS} alternating rounds, "
        f"the middle half of the rounds in brackets; at eta = 1, the built-in's `stochastic_sampling` and without the "
        f"time of drawing the noise.\n\n{table()}\nCompilations of a loop of {STEPS} steps with `fullgraph=True`: "
        f"{compilations()}.\n"
    )
    print(result, end="")
    if args.update is not None:
        update(args.update, "flow-step", result)
    return result


if __name__ == "__main__":
    main()
