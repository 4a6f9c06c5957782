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
from diffusers.schedulers import scheduling_flow_match_euler_discrete

from ddim_scheduler import EtaFlowMatchScheduler, steps
from ddim_scheduler.command_line import run

from report import check, update, versions
from step import Ratio, ratio_of

SHAPES = ((1, 16, 32, 32), (1, 16, 128, 128), (4, 16, 128, 128))
STEPS = 28
ROUNDS = 15
SECONDS_PER_ROUND = 0.1


def loop(scheduler, model_output: torch.Tensor, sample: torch.Tensor) -> Callable[[], None]:
    """A function that makes all steps of the grid; the built-in counts them, so that it must begin anew."""

    def run():
        scheduler.set_begin_index(0)
        scheduler._step_index = None
        for t in scheduler.timesteps:
            scheduler.step(model_output, t, sample, return_dict=False)

    return run


def seconds(function: Callable[[], None], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        function()
    return (time.process_time() - start) / count / STEPS


def compare(theirs: Callable[[], None], ours: Callable[[], None]) -> Ratio:
    """The ratio of two loops, per step."""
    functions = theirs, ours
    counts = [max(1, round(SECONDS_PER_ROUND / STEPS / max(seconds(f, 2), 1e-6))) for f in functions]
    rounds = [[seconds(f, n) for f, n in zip(functions, counts, strict=True)] for _ in range(ROUNDS)]
    return ratio_of(*(list(column) for column in zip(*rounds, strict=True)))


def table() -> str:
    lines = ["| sample | eta | diffusers, µs | ours, µs | ratio |", "|---|---|---|---|---|"]
    for shape in SHAPES:
        sample, model_output, noise = torch.randn(3, *shape)
        for module in (scheduling_flow_match_euler_discrete, steps):
            module.randn_tensor = lambda *_, noise=noise, **__: noise  # drawn before, for both
        for eta in (0, 1):
            given = {"stochastic_sampling": True} if eta else {}
            schedulers = FlowMatchEulerDiscreteScheduler(shift=3.0, **given), EtaFlowMatchScheduler(shift=3.0, eta=eta)
            for scheduler in schedulers:
                scheduler.set_timesteps(STEPS)
            ratio = compare(*(loop(scheduler, model_output, sample) for scheduler in schedulers))
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
    check(args.update, "flow-step")
    torch.set_num_threads(1)
    torch.empty(31 * 2**20, dtype=torch.uint8)  # as in step.py: malloc then keeps what is freed
    method = (
        f"float32, {STEPS} timesteps, tuples; process time, medians of {ROUNDS} alternating rounds, the middle half"
    )
    result = (
        f"{versions('cpu')}; {method} of the rounds in brackets; at eta = 1 against the built-in's "
        f"`stochastic_sampling`, with the noise drawn before.\n\n{table()}\nCompilations of {STEPS} steps with "
        f"`fullgraph=True`: {compilations()}.\n"
    )
    print(result, end="")
    update(args.update, "flow-step", result)
    return result


if __name__ == "__main__":
    run(main)
