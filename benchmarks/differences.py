# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Measures where EtaDDIMScheduler differs from diffusers' DDIMScheduler, and prints the table of the README.

    python benchmarks/differences.py
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from ddim_scheduler import EtaDDIMScheduler
from ddim_scheduler.command_line import run

from report import check, update

MEAN, STD = 0.3, 0.5  # Gaussian data, whose exact denoiser is known


def wrong_lengths(scheduler_class: type) -> str:
    scheduler = scheduler_class(timestep_spacing="trailing")
    wrong = 0
    for n in range(1, 1001):
        scheduler.set_timesteps(n)
        wrong += len(scheduler.timesteps) != n
    return f"{wrong} of 1000"


def missed_successors(scheduler_class: type, spacing: str) -> str:
    """Step counts with a step that goes to another noise level than that of the next timestep."""
    scheduler = scheduler_class(timestep_spacing=spacing, clip_sample=False)
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    missed = 0
    for n in range(2, 1001):
        scheduler.set_timesteps(n)
        timesteps = scheduler.timesteps[:n].tolist()
        for t, s in zip(timesteps, [*timesteps[1:], None], strict=True):
            # with eps = 0, x_t = alpha_t goes to x_s = alpha_s
            alpha_s = 1.0 if s is None else scheduler.alphas_cumprod[s].item() ** 0.5
            x = scheduler.step(zero, t, scheduler.alphas_cumprod[t].sqrt() * one).prev_sample.item()
            if abs(x - alpha_s) > 1e-5:
                missed += 1
                break
    return f"{missed} of 999"


def slope(scheduler_class: type, spacing: str) -> str:
    """Slope of log(error) against log(steps), over step counts that do not divide 1000."""
    scheduler = scheduler_class(timestep_spacing=spacing, clip_sample=False)
    bars = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    start = torch.randn(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step_counts = (7, 11, 13, 23, 37, 61, 103, 151)
    errors = []
    for n in step_counts:
        scheduler.set_timesteps(n)
        x = start
        for t in scheduler.timesteps:
            alpha, sigma = bars[t].sqrt(), (1 - bars[t]).sqrt()
            epsilon = sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
            x = scheduler.step(epsilon, t, x).prev_sample
        bar = bars[scheduler.timesteps[0]]
        solution = MEAN + STD * (start - bar.sqrt() * MEAN) / (bar * STD**2 + 1 - bar).sqrt()
        errors.append((x - solution).abs().max().item())
    return f"{np.polyfit(np.log(step_counts), np.log(errors), 1)[0]:.2f}"


def not_finite(scheduler_class: type) -> str:
    scheduler = scheduler_class(
        rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
    )
    x = torch.ones(1, 1, 1, 1)
    broken = 0
    for n in range(1, 101):
        scheduler.set_timesteps(n)
        results = [scheduler.step(x, t, x, eta=1.0, variance_noise=x).prev_sample for t in scheduler.timesteps]
        broken += not torch.stack(results).isfinite().all()
    return f"{broken} of 100"


def lost_noise(scheduler_class: type, beta_schedule: str) -> str:
    scheduler = scheduler_class(beta_schedule=beta_schedule)
    x = torch.ones(1000, 1, dtype=torch.bfloat16)
    noisy = scheduler.add_noise(0 * x, x, torch.arange(1000))
    return f"{(noisy == 0).sum().item()} of 1000"


def half_precision_error(scheduler_class: type, dtype: torch.dtype) -> str:
    """Largest error of one step against float64, in units in the last place of the result (of 1 where it is less)."""
    x, output = torch.randn(2, 65536, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    worst = 0.0
    for t in range(0, 1000, 20):
        results = []
        for cls, state_dtype in ((scheduler_class, dtype), (EtaDDIMScheduler, torch.float64)):
            scheduler = cls(prediction_type="v_prediction", clip_sample=False)
            scheduler.set_timesteps(50)
            results.append(scheduler.step(output.to(state_dtype), t, x.to(state_dtype)).prev_sample.double())
        exponent = results[1].abs().clamp(min=1).log2().floor()
        worst = max(worst, ((results[0] - results[1]).abs() / (torch.finfo(dtype).eps * 2**exponent)).max().item())
    return f"{worst:.1f}"


class CountOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operators(scheduler_class: type) -> str:
    """Operators of one step whose timestep is a tensor, and how many of them read a value back to the host."""
    scheduler = scheduler_class()
    scheduler.set_timesteps(50)
    x = torch.randn(1, 3, 8, 8)
    timestep = scheduler.timesteps[10]
    with CountOperators() as mode:
        scheduler.step(x, timestep, x)
    return f"{sum(mode.counts.values())} ({mode.counts['_local_scalar_dense']})"


ROWS: list[tuple[str, Callable]] = [
    ("`trailing`: step counts 1..1000 that return another number of timesteps", wrong_lengths),
    ("`linspace`: step counts 2..1000 that step to a wrong noise level", lambda c: missed_successors(c, "linspace")),
    ("`trailing`: step counts 2..1000 that step to a wrong noise level", lambda c: missed_successors(c, "trailing")),
    ("`leading`: order of convergence (first order is -1)", lambda c: slope(c, "leading")),
    ("`linspace`: order of convergence", lambda c: slope(c, "linspace")),
    ("`trailing`: order of convergence", lambda c: slope(c, "trailing")),
    ("zero terminal SNR, eta = 1: step counts 1..100 with NaN", not_finite),
    ("`add_noise` in bfloat16, linear betas: timesteps without any noise", lambda c: lost_noise(c, "linear")),
    ("`add_noise` in bfloat16, cosine betas: the same", lambda c: lost_noise(c, "squaredcos_cap_v2")),
    ("one step in bfloat16: largest error in ulp of the result", lambda c: half_precision_error(c, torch.bfloat16)),
    ("one step in float16: the same", lambda c: half_precision_error(c, torch.float16)),
    ("operators of one step (of them, reads back to the host)", operators),
]


def main(argv: list[str] | None = None) -> str:
    """Prints the table and returns it."""
    parser = argparse.ArgumentParser(
        description="Measure where EtaDDIMScheduler differs from diffusers' DDIMScheduler."
    )
    parser.add_argument("--update", type=Path, help="document to put the table into, between its markers")
    args = parser.parse_args(argv)
    check(args.update, "differences")
    warnings.filterwarnings("ignore")
    diffusers.logging.set_verbosity_error()

    lines = [f"| torch {torch.__version__}, T = 1000 | diffusers {diffusers.__version__} | here |", "|---|---|---|"]
    lines += [f"| {name} | {measure(DDIMScheduler)} | {measure(EtaDDIMScheduler)} |" for name, measure in ROWS]
    table = "\n".join(lines) + "\n"
    print(table, end="")
    update(args.update, "differences", table)
    return table


if __name__ == "__main__":
    run(main)
