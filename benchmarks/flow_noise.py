# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
The noise that stochastic steps for flow models leave in the result, with an exact prediction of x_0, on Flux's grid: of
EtaFlowMatchScheduler, and of the steps of Flow-GRPO (https://arxiv.org/abs/2505.05470, eq. 9) and DanceGRPO
(https://arxiv.org/abs/2505.07818), written here from the papers. A right sampler leaves none.

    python benchmarks/flow_noise.py --update RESULTS.md
"""

import argparse
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ddim_scheduler import EtaFlowMatchScheduler
from ddim_scheduler.command_line import run

from report import check, update

NUMBERS = (4, 10, 20)
MU = 1.15  # Flux at 1024x1024

# (u, x, sigma_t, sigma_s) -> mean and std of x_s
Step = Callable[[float, float, float, float], tuple[float, float]]


def flux_scheduler(N: int) -> EtaFlowMatchScheduler:
    scheduler = EtaFlowMatchScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / N, N), mu=MU)
    return scheduler


def family(scheduler: EtaFlowMatchScheduler, eta: float) -> Step:
    timesteps = dict(zip(scheduler.sigmas.tolist(), scheduler.timesteps.tolist(), strict=False))

    def step(u, x, sigma_t, sigma_s):
        u, x = (torch.tensor([[value]], dtype=torch.float64) for value in (u, x))
        mean, std, _ = scheduler.transition(u, timesteps[sigma_t], x, eta)
        return mean.item(), std.item()

    return step


def flow_grpo(scheduler: EtaFlowMatchScheduler, a: float) -> Step:
    """Euler-Maruyama of the SDE with noise a sqrt(sigma / (1 - sigma)); at sigma = 1, with the next level for it."""
    second = scheduler.sigmas[1].item()

    def step(u, x, sigma_t, sigma_s):
        dt, level = sigma_s - sigma_t, a * math.sqrt(sigma_t / (1 - (second if sigma_t == 1 else sigma_t)))
        drift = u + level**2 / (2 * sigma_t) * (x + (1 - sigma_t) * u)
        return x + drift * dt, level * math.sqrt(-dt)

    return step


def dance_grpo(scheduler: EtaFlowMatchScheduler, level: float) -> Step:
    """The same with a constant noise."""

    def step(u, x, sigma_t, sigma_s):
        dt, x_0 = sigma_s - sigma_t, x - sigma_t * u
        score = -(x - (1 - sigma_t) * x_0) / sigma_t**2
        return x + (u - level**2 / 2 * score) * dt, level * math.sqrt(-dt)

    return step


def noise_left(scheduler: EtaFlowMatchScheduler, step: Step) -> float:
    """Std of the result where all data are x_0 = 0: each step is linear in the sample, and its noise is independent."""
    variance, sigmas = 1.0, scheduler.sigmas.tolist()
    for sigma_t, sigma_s in itertools.pairwise(sigmas):
        mean, std = step(1 / sigma_t, 1.0, sigma_t, sigma_s)  # of x = 1, u = (x - x_0) / sigma
        variance = mean**2 * variance + std**2
    return math.sqrt(variance)


def same_eta(scheduler: EtaFlowMatchScheduler, step: Step) -> list[float]:
    """The eta with the noise of that step, for each step but the last."""
    etas, sigmas = [], scheduler.sigmas.tolist()
    for sigma_t, sigma_s in itertools.pairwise(sigmas[:-1]):
        largest = family(scheduler, 1.0)(0.0, 0.0, sigma_t, sigma_s)[1]
        etas.append(step(0.0, 0.0, sigma_t, sigma_s)[1] / largest)
    return etas


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Prints the table and returns its numbers."""
    parser = argparse.ArgumentParser(description="Measure the noise that stochastic steps leave in the result.")
    parser.add_argument("--update", type=Path, help="document to put the table into, between its markers")
    args = parser.parse_args(argv)
    check(args.update, "flow-noise")
    makers: dict[str, Callable[[EtaFlowMatchScheduler], Step]] = {
        "here, eta 0.5": lambda scheduler: family(scheduler, 0.5),
        "here, eta 1": lambda scheduler: family(scheduler, 1.0),
        "Flow-GRPO, a = 0.7": lambda scheduler: flow_grpo(scheduler, 0.7),
        "DanceGRPO, 0.3": lambda scheduler: dance_grpo(scheduler, 0.3),
    }
    schedulers = [flux_scheduler(N) for N in NUMBERS]
    rows = {name: [noise_left(s, maker(s)) for s in schedulers] for name, maker in makers.items()}
    etas = same_eta(schedulers[1], makers["Flow-GRPO, a = 0.7"](schedulers[1]))
    lines = [f"| steps | {' | '.join(map(str, NUMBERS))} |", "|---|" + "---|" * len(NUMBERS)]
    lines += [f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |" for name, values in rows.items()]
    result = "\n".join(lines) + (
        f"\n\nThe noise of Flow-GRPO's steps at a = 0.7 is that of eta {min(etas):.2f} to {max(etas):.2f} in "
        f"{NUMBERS[1]} steps.\n"
    )
    print(result, end="")
    update(args.update, "flow-noise", result)
    return rows


if __name__ == "__main__":
    run(main)
