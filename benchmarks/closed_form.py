# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Samples a distribution whose score is known, so that every error is the sampler's own: real digits at 8x8, each blurred
by a Gaussian. Ours and five samplers of diffusers start from the same noise.

    python benchmarks/closed_form.py data/digits/test
"""

import argparse
import logging
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from matplotlib.figure import Figure

from ddim_scheduler import EtaDDIMScheduler
from ddim_scheduler.command_line import run
from ddim_scheduler.evaluation import frechet_distance, load_images

from report import check, update

SIZE = 8
BLUR = 0.1  # std around each digit, whose pixels are in [-1, 1]
STEP_COUNTS = (5, 10, 20, 30, 50)  # 30 does not divide 1000
SPACINGS = ("leading", "trailing", "linspace", "quadratic")
ETAS = (0.0, 0.2, 0.5, 1.0)
FRESH_NOISE = 10_000  # added to the seed of x_T for the noise of the steps, which must not be x_T again
NO_CLIPPING = {"clip_sample": False}
# name, class, arguments of the constructor, arguments of a step
SAMPLERS: list[tuple[str, type, dict, dict]] = [
    *((f"ours, η = {eta:g}", EtaDDIMScheduler, NO_CLIPPING, {"eta": eta}) for eta in ETAS),
    ("ours, sigma-hat", EtaDDIMScheduler, {**NO_CLIPPING, "variance_type": "sigma_hat"}, {"eta": 1.0}),
    *((f"DDIM, η = {eta:g}", DDIMScheduler, NO_CLIPPING, {"eta": eta}) for eta in ETAS),
    ("DDPM", DDPMScheduler, NO_CLIPPING, {}),
    ("Euler", EulerDiscreteScheduler, {}, {}),
    ("DPM-Solver++(2M)", DPMSolverMultistepScheduler, {}, {}),
    ("UniPC", UniPCMultistepScheduler, {}, {}),
]
DETERMINISTIC = ("ours, η = 0", "DDIM, η = 0", "Euler", "DPM-Solver++(2M)", "UniPC")


def digits(folder: Path) -> torch.Tensor:
    """The images of a folder at 8x8 as rows in [-1, 1], float64."""
    images = load_images(folder, like=torch.empty(1, 1, SIZE, SIZE))
    return images.double().flatten(1) / 127.5 - 1


def draw(data: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """Samples of the distribution itself."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(data), (number,), generator=generator)
    return data[rows] + BLUR * torch.randn(number, data.shape[1], generator=generator, dtype=torch.float64)


def exact_epsilon(data: torch.Tensor) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """E[eps | x_t] as a function of x_t (B, D) and alpha-bar, for the mixture of N(row, BLUR^2 I)."""
    half_norms = data.square().sum(1) / 2

    def epsilon(x_t: torch.Tensor, alpha_bar: float) -> torch.Tensor:
        alpha, variance = math.sqrt(alpha_bar), 1 - alpha_bar
        total = variance + alpha_bar * BLUR**2  # of x_t around alpha times a row
        weights = torch.softmax((alpha * x_t @ data.T - alpha_bar * half_norms) / total, dim=1)
        return math.sqrt(variance) / total * (x_t - alpha * weights @ data)

    return epsilon


def sample(scheduler, epsilon: Callable, num_inference_steps: int, x_T: torch.Tensor, seed: int, **kwargs):
    """The end of the sampling loop from the noise x_T (B, D)."""
    bars = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    scheduler.set_timesteps(num_inference_steps)
    x = x_T * scheduler.init_noise_sigma
    if not isinstance(scheduler, UniPCMultistepScheduler):  # which takes no generator, and draws nothing
        kwargs["generator"] = torch.Generator().manual_seed(FRESH_NOISE + seed)
    for i, t in enumerate(scheduler.timesteps):
        if isinstance(scheduler, EulerDiscreteScheduler):  # its timesteps lie between those of the table
            alpha_bar = 1 / (1 + scheduler.sigmas[i].item() ** 2)
        else:
            alpha_bar = bars[t].item()
        output = epsilon(scheduler.scale_model_input(x, t), alpha_bar)
        x = scheduler.step(output, t, x, **kwargs).prev_sample
    return x


def measure(data: torch.Tensor, num_images: int, num_seeds: int) -> dict:
    """
    For every (spacing, sampler, steps): the Fréchet distances of the seeds in pixels, and of deterministic samplers the
    root mean square distance to the end of 1000 steps from the same noise.
    """
    epsilon = exact_epsilon(data)
    reference = draw(data, 20 * num_images, seed=1000)
    results: dict[tuple[str, str, int], tuple[list[float], list[float]]] = {}
    floor = [frechet_distance(draw(data, num_images, seed), reference) for seed in range(num_seeds)]
    results["floor", "", 0] = (floor, [])
    for seed in range(num_seeds):
        generator = torch.Generator().manual_seed(seed)
        x_T = torch.randn(num_images, data.shape[1], generator=generator, dtype=torch.float64)
        solution = sample(EtaDDIMScheduler(clip_sample=False), epsilon, 1000, x_T, seed)
        for spacing in SPACINGS:
            for name, scheduler_class, arguments, step_arguments in SAMPLERS:
                if spacing == "quadratic" and scheduler_class is not EtaDDIMScheduler:
                    continue
                scheduler = scheduler_class(timestep_spacing=spacing, **arguments)
                for steps in STEP_COUNTS:
                    x = sample(scheduler, epsilon, steps, x_T, seed, **step_arguments)
                    distances, errors = results.setdefault((spacing, name, steps), ([], []))
                    distances.append(frechet_distance(x, reference))
                    if name in DETERMINISTIC:
                        errors.append((x - solution).square().mean().sqrt().item())
    return results


def table(results: dict, column: int, names: list[str]) -> str:
    """Mean over the seeds and half of their range, one row for each spacing and sampler."""
    lines = ["| τ | sampler | " + " | ".join(f"S = {steps}" for steps in STEP_COUNTS) + " |"]
    lines.append("|---|---|" + "---|" * len(STEP_COUNTS))
    for spacing in SPACINGS:
        for name in names:
            cells = [
                results[spacing, name, steps][column] for steps in STEP_COUNTS if (spacing, name, steps) in results
            ]
            if cells:
                lines.append(f"| `{spacing}` | {name} | {' | '.join(map(with_spread, cells))} |")
    return "\n".join(lines) + "\n"


def with_spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def plot(results: dict, path: Path):
    """Both figures against the number of steps, for the trailing spacing; of the built-in DDIM η = 0 alone."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = ("Fréchet distance in pixels", "distance to the end of 1000 steps")
    names = [name for name, *_ in SAMPLERS if name == "DDIM, η = 0" or not name.startswith("DDIM")]
    for column, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        for i, name in enumerate(names):
            cells = [results["trailing", name, steps][column] for steps in STEP_COUNTS]
            if cells[0]:
                style = f"C{i}{'-' if name.startswith('ours') else '--'}"
                axes.plot(STEP_COUNTS, [statistics.mean(cell) for cell in cells], style, marker=".", label=name)
        axes.set(title=title, xlabel="steps (trailing)", xscale="log", yscale="log")
        axes.set_xticks(STEP_COUNTS, STEP_COUNTS)
        axes.minorticks_off()
    panels[0].axhline(statistics.mean(results["floor", "", 0][0]), color="gray", linewidth=0.8, label="floor")
    ticks = (0.03, 0.05, 0.1, 0.15)
    panels[1].set_yticks(ticks, ticks)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main(argv: list[str] | None = None) -> dict:
    """Prints the tables and returns the figures in them."""
    parser = argparse.ArgumentParser(
        description="Sample a distribution of digits whose score is known, with ours and the samplers of diffusers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("data_dir", type=Path, help="folder of digits")
    parser.add_argument("--num_images", type=int, default=500, help="samples for each cell and seed")
    parser.add_argument("--num_seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("--update", type=Path, help="document to put the tables into, between its markers")
    args = parser.parse_args(argv)
    if args.num_images <= SIZE**2 or args.num_seeds < 1:
        parser.error(f"--num_images must be more than {SIZE**2}, and --num_seeds at least 1")
    check(args.update, "closed-form")
    warnings.filterwarnings("ignore")
    for name in ("diffusers", "ddim_scheduler"):  # `leading` says that 5 steps start far from pure noise
        logging.getLogger(name).setLevel(logging.ERROR)

    data = digits(args.data_dir)
    results = measure(data, args.num_images, args.num_seeds)
    floor = with_spread(results["floor", "", 0][0])
    text = (
        f"{len(data)} digits at {SIZE}x{SIZE}, blur {BLUR}; {args.num_images} samples, {args.num_seeds} seeds; "
        f"diffusers {diffusers.__version__}. Fréchet distance in pixels, mean and half the range over the seeds; "
        f"samples of the distribution itself have {floor}.\n\n"
        f"{table(results, 0, [name for name, *_ in SAMPLERS])}\n"
        "Distance to the end of 1000 steps of η = 0 from the same noise, root mean square of a pixel in [-1, 1]:\n\n"
        f"{table(results, 1, list(DETERMINISTIC))}"
    )
    print(text, end="")
    if args.plot is not None:
        plot(results, args.plot)
    update(args.update, "closed-form", text)
    return results


if __name__ == "__main__":
    run(main)
