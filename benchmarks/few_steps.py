# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Samplers of few steps on the distribution of `closed_form.py`, whose denoiser is exact: fitted ones and ours of order 1
to 3 beside the multistep samplers of diffusers, each of these at the best of its settings for every number of calls.
All start from the same noise, which nothing was fitted to.

    python benchmarks/few_steps.py data/digits/test

Linear betas, cosine betas, scaled-linear betas with zero terminal SNR, and flow matching.
"""

import argparse
import inspect
import itertools
import logging
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from matplotlib.figure import Figure

from ddim_scheduler import EtaDDIMScheduler, EtaFlowMatchScheduler
from ddim_scheduler.command_line import run
from ddim_scheduler.evaluation import frechet_distance
from ddim_scheduler.fitting import TrajectoryRecorder, fit_table, teacher_of, with_tables
from ddim_scheduler.timestep_grids import TIMESTEP_SPACINGS

from closed_form import BLUR, SIZE, digits, draw
from report import check, update, versions

COUNTS = (3, 5, 8, 10, 15, 20, 30, 50)
SEEDS = (100, 101, 102)
FITTED_SEED, HELD_OUT_SEED, TRAJECTORIES, TEACHER_STEPS, CONVERGED_STEPS = 0, 1, 128, 80, 300
ZERO_SNR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
TRACKS: dict[str, dict[str, Any]] = {
    "linear betas": {},
    "cosine betas": {"beta_schedule": "squaredcos_cap_v2"},
    "zero terminal SNR, v": {**ZERO_SNR, "prediction_type": "v_prediction"},
    "flow": {"prediction_type": "flow_prediction"},
}
MULTISTEP: list[tuple[str, type, dict[str, Any]]] = [
    ("DPM-Solver++(2M)", DPMSolverMultistepScheduler, {"solver_order": 2}),
    ("DPM-Solver++(3M)", DPMSolverMultistepScheduler, {"solver_order": 3}),
    ("DEIS-3", DEISMultistepScheduler, {"solver_order": 3}),
    ("UniPC-2", UniPCMultistepScheduler, {"solver_order": 2}),
    ("UniPC-3", UniPCMultistepScheduler, {"solver_order": 3}),
    ("SA-Solver, τ = 0", SASolverScheduler, {"tau_func": lambda t: 0.0}),
    ("SA-Solver of order 3, τ = 0", SASolverScheduler, {"tau_func": lambda t: 0.0, "predictor_order": 3}),
]
OF_BETAS = [
    *MULTISTEP,
    ("LMS", LMSDiscreteScheduler, {}),
    ("PLMS", PNDMScheduler, {"skip_prk_steps": True}),
]
OF_FLOW = [
    *MULTISTEP,
    ("Euler", FlowMatchEulerDiscreteScheduler, {}),
    ("Heun", FlowMatchHeunDiscreteScheduler, {}),
]
SHIFTS = (0.5, 1.0, 2.0, 3.0)  # of a flow model's levels
SIGMAS: list[dict[str, Any]] = [
    {f"use_{name}": True} for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")
]
Output = Callable[[torch.Tensor, float, float, Any], torch.Tensor]  # of x_t, alpha, sigma and t


class Track(NamedTuple):
    """A model: its output, its schedulers' settings, noise for a seed, and a distance of samples from the data."""

    output: Output
    settings: dict[str, Any]
    noise: Callable[[int, int], torch.Tensor]
    distance: Callable[[torch.Tensor], float] | None = None

    @property
    def is_flow(self) -> bool:
        return self.settings.get("prediction_type") == "flow_prediction"


class Sampler(NamedTuple):
    """A scheduler, made anew by `make`, under the name that its settings share."""

    name: str
    setting: str
    make: Callable[[], Any]


# of name, setting and calls: RMS and median distances from the converged end, distances from the data
Results = dict[tuple[str, str, int], tuple[list[float], list[float], list[float]]]


def exact(data: torch.Tensor, settings: dict[str, Any]) -> Output:
    """The output of an exact model of the mixture of N(row, BLUR^2 I)."""
    prediction_type = settings.get("prediction_type")

    def output(x: torch.Tensor, alpha: float, sigma: float, t: Any) -> torch.Tensor:
        total = sigma**2 + (alpha * BLUR) ** 2
        weights = torch.softmax((alpha * x @ data.T - alpha**2 * data.square().sum(1) / 2) / total, dim=1)
        mean = weights @ data
        x_0 = mean + alpha * BLUR**2 / total * (x - alpha * mean)
        epsilon = (x - alpha * x_0) / sigma
        if prediction_type == "flow_prediction":
            return epsilon - x_0
        return alpha * epsilon - sigma * x_0 if prediction_type == "v_prediction" else epsilon

    return output


def sample(scheduler: Any, track: Track, x_T: torch.Tensor) -> torch.Tensor:
    """The end of the loop over the grid that is set."""
    x = x_T * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else x_T
    for i, t in enumerate(scheduler.timesteps):
        if track.is_flow:
            sigma = scheduler.sigmas[i].item()
            alpha = 1 - sigma
        else:  # of the level itself, where the timestep is a rounded one
            has_levels = hasattr(scheduler, "sigmas")
            bar = 1 / (1 + scheduler.sigmas[i].item() ** 2) if has_levels else scheduler.alphas_cumprod[int(t)].item()
            alpha, sigma = bar**0.5, (1 - bar) ** 0.5
        model_input = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(track.output(model_input, alpha, sigma, t), t, x).prev_sample.to(x_T.dtype)
        if not x.isfinite().all():
            raise ValueError("The samples are not finite.")
    return x


def set_calls(scheduler: Any, N: int):
    """Sets the most steps that need at most N calls of the model."""
    for steps in range(N, 0, -1):
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) <= N:
            return


def ours(track: Track, **settings: Any) -> Any:
    if track.is_flow:
        return EtaFlowMatchScheduler(**settings)
    return EtaDDIMScheduler(clip_sample=False, **{**track.settings, **settings})


def our_settings(track: Track) -> dict[str, dict[str, Any]]:
    """The grids of ours that need no fitting."""
    if track.is_flow:
        return {f"shift {shift:g}": {"shift": shift} for shift in SHIFTS}
    return {spacing: {"timestep_spacing": spacing} for spacing in TIMESTEP_SPACINGS}


def converged(track: Track, x_T: torch.Tensor, steps: int) -> torch.Tensor:
    """The end of many steps of order 3, even in angle."""
    scheduler = ours(track, solver_order=3, **({} if track.is_flow else {"timestep_spacing": "angle"}))
    if track.is_flow:
        angles = np.pi / 2 * np.arange(steps, 0, -1) / steps
        scheduler.set_timesteps(sigmas=np.sin(angles) / (np.sin(angles) + np.cos(angles)))
    else:
        scheduler.set_timesteps(steps)
    return sample(scheduler, track, x_T)


def fitted(track: Track, counts: Iterable[int]) -> Any:
    """What `fit_sampler` does with a pipeline."""
    scheduler = ours(track)

    def loop(watcher: Any, N: int, is_held_out: bool) -> Any:
        with watcher:
            watcher.scheduler.set_timesteps(N)
            sample(watcher.scheduler, track, track.noise(TRAJECTORIES, HELD_OUT_SEED if is_held_out else FITTED_SEED))
        return watcher

    teachers = [loop(TrajectoryRecorder(teacher_of(scheduler)), TEACHER_STEPS, held_out) for held_out in (False, True)]
    tables = {str(N): fit_table(scheduler, N, *teachers, loop)[0] for N in counts}
    return with_tables(scheduler, tables)


def our_samplers(track: Track, scheduler: Any) -> Iterator[Sampler]:
    """The fitted scheduler, and ours of order 1 to 3 on every grid."""
    yield Sampler("fitted", "", lambda: scheduler)
    for order in (1, 2, 3):
        for name, setting in our_settings(track).items():
            yield Sampler(f"ours, order {order}", name, lambda o=order, s=setting: ours(track, solver_order=o, **s))


def their_samplers(track: Track) -> Iterator[Sampler]:
    """Those of diffusers that know this model, in each of their settings."""
    rescales = "rescale_betas_zero_snr" in track.settings
    for name, scheduler_class, arguments in OF_FLOW if track.is_flow else OF_BETAS:
        parameters = inspect.signature(scheduler_class).parameters
        if rescales and "rescale_betas_zero_snr" not in parameters:
            continue
        if not track.is_flow:
            own = track.settings
            grids = {s: {"timestep_spacing": s} for s in ("leading", "trailing", "linspace")}
        else:
            is_by_betas = "use_flow_sigmas" in parameters
            own = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if is_by_betas else {}
            grids = {f"shift {s:g}": {"flow_shift" if is_by_betas else "shift": s} for s in SHIFTS}
        grids |= {next(iter(s)).split("_")[1]: s for s in SIGMAS if {*s} <= {*parameters}}
        for label, setting in grids.items():
            yield Sampler(name, label, lambda c=scheduler_class, k={**own, **arguments, **setting}: c(**k))


def measure(
    track: Track, cells: Iterable[tuple[Sampler, int]], num_images: int, seeds: Iterable[int], steps: int
) -> Results:
    """Of samplers and numbers of calls, how far their ends are from the converged ones and the data, for each seed."""
    cells, results = list(cells), {}
    for seed in seeds:
        x_T = track.noise(num_images, seed)
        end = converged(track, x_T, steps)
        for (name, setting, make), N in cells:
            scheduler = make()
            rms, medians, distances = results.setdefault((name, setting, N), ([], [], []))
            try:
                set_calls(scheduler, N)
                x = sample(scheduler, track, x_T)
                squares = (x - end).flatten(1).square().mean(1)
            except (ValueError, IndexError, RuntimeError, AssertionError):  # some settings end in these
                squares = torch.full((1,), float("inf"))
            rms.append(squares.mean().sqrt().item())
            medians.append(squares.median().sqrt().item())
            if track.distance is not None:
                distances.append(track.distance(x) if rms[-1] < 10 else float("inf"))
    return results


def best(results: Results, names: Iterable[str], N: int, column: int) -> tuple[float, str, str]:
    """The smallest mean over the seeds among the settings of some samplers, the sampler and the setting."""
    means = [(statistics.mean(v[column]), n, s) for (n, s, count), v in results.items() if count == N and n in names]
    return min(means, default=(float("nan"), "", ""))


def their_names(results: Results) -> list[str]:
    return [n for n in dict.fromkeys(n for n, *_ in results) if n != "fitted" and not n.startswith("ours")]


def short(distance: float) -> str:
    """Three decimals, or two digits of a small one."""
    return f"{distance:.3f}" if distance >= 0.01 else f"{distance:.2g}"


def table(results: Results, counts: Iterable[int], column: int) -> str:
    """Each sampler at the best of its settings, by its RMS or its distance."""
    lines = [f"| calls | {' | '.join(map(str, counts))} |", "|---|" + "---|" * len([*counts])]
    for name in dict.fromkeys(name for name, *_ in results):
        cells = (best(results, [name], N, column) for N in counts)
        lines.append(f"| {name} | " + " | ".join(f"{short(value)} {s}".strip() for value, _, s in cells) + " |")
    cells = (best(results, their_names(results), N, column)[0] for N in counts)
    lines.append("| **best of diffusers'** | " + " | ".join(map(short, cells)) + " |")
    return "\n".join(lines) + "\n"


def summary(tables: dict[str, Results], counts: Iterable[int], column: int) -> str:
    """The fitted sampler and the best of diffusers', on every track."""
    lines = [f"| | {' | '.join(f'{N} calls' for N in counts)} |", "|---|" + "---|" * len([*counts])]
    for title, results in tables.items():
        pairs = [[best(results, names, N, column)[0] for names in (["fitted"], their_names(results))] for N in counts]
        cells = (f"{short(a)}, {short(b)}: {a / b:.2f}" for a, b in pairs)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_grid(results: Results, track: Track, counts: Iterable[int]) -> str:
    """RMS of order 1, 2 and 3 on each grid."""
    lines = [
        f"| RMS of order 1, 2, 3 | {' | '.join(f'{N} calls' for N in counts)} |",
        "|---|" + "---|" * len([*counts]),
    ]
    for name in our_settings(track):
        cells = ([statistics.mean(results[f"ours, order {k}", name, N][0]) for k in (1, 2, 3)] for N in counts)
        lines.append(f"| `{name}` | " + " | ".join(", ".join(f"{v:.3f}" for v in cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def worse_counts(track: Track, num_images: int) -> list[int]:
    """The N of 3..50 at which the fitted sampler is farther from the end than order 1 on the best of its grids."""
    counts = range(3, 51)
    samplers = [s for s in our_samplers(track, fitted(track, counts)) if s.name in ("fitted", "ours, order 1")]
    cells = itertools.product(samplers, counts)
    results = measure(track, cells, num_images, SEEDS[:1], CONVERGED_STEPS)
    return [N for N in counts if best(results, ["fitted"], N, 0) > best(results, ["ours, order 1"], N, 0)]


def plot(tables: dict[str, Results], path: Path):
    """RMS against the number of calls, for each track."""
    figure = Figure(figsize=(2.9 * len(tables) + 0.5, 3.4), layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    ticks = (0.0002, 0.001, 0.005, 0.02, 0.1)
    for axes, (title, results) in zip(panels, tables.items(), strict=True):
        curves = {"order 1": ["ours, order 1"], "best of diffusers'": their_names(results), "fitted": ["fitted"]}
        for (label, names), colour in zip(curves.items(), ("C7", "C0", "C3"), strict=True):
            axes.plot(COUNTS, [best(results, names, N, 0)[0] for N in COUNTS], colour, marker="o", label=label)
        axes.set(title=title, xlabel="calls of the model", xscale="log", yscale="log")
        axes.set_xticks(COUNTS, COUNTS)
        axes.set_yticks(ticks, ticks)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("RMS distance from the converged end")
    panels[0].legend(loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


@torch.no_grad()
def main(argv: list[str] | None = None) -> dict[str, Results]:
    """Prints the tables, and returns the figures in them."""
    parser = argparse.ArgumentParser(
        description="Samplers of few steps, ours and those of diffusers, from the same noise.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("data_dir", type=Path, help="folder of digits")
    parser.add_argument("--num_images", type=int, default=200, help="samples for each cell and seed")
    parser.add_argument("--tracks", nargs="+", default=[*TRACKS], choices=[*TRACKS], help="which models")
    parser.add_argument("--every_count", action="store_true", help="also compare with order 1 at each of 3..50 steps")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("--update", type=Path, help="document to put the tables into, between its markers")
    args = parser.parse_args(argv)
    if args.num_images <= SIZE**2:
        parser.error(f"--num_images must be more than {SIZE**2}")
    check(args.update, "few-steps")
    quiet()

    data = digits(args.data_dir)
    rows = data.float()  # for speed: its rounding is far below the distances
    reference = draw(data, 20 * args.num_images, seed=1000)
    floor = statistics.mean(frechet_distance(draw(data, args.num_images, seed), reference) for seed in SEEDS)

    def noise(number: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(number, data.shape[1], generator=generator)

    tables, parts = {}, []
    for title in args.tracks:
        settings = TRACKS[title]
        track = Track(exact(rows, settings), settings, noise, lambda x: frechet_distance(x.double(), reference))
        samplers = [*our_samplers(track, fitted(track, COUNTS)), *their_samplers(track)]
        cells = itertools.product(samplers, COUNTS)
        tables[title] = measure(track, cells, args.num_images, SEEDS, CONVERGED_STEPS)
        parts.append(f"Exact model, {title}: RMS distance from the converged end.\n")
        parts += [table(tables[title], COUNTS, 0), by_grid(tables[title], track, (5, 10, 20))]
        if args.every_count:
            worse = worse_counts(track, args.num_images)
            parts.append(
                f"Numbers of steps 3..50 at which order 1 on the best of its {len(our_settings(track))} grids is "
                f"nearer than the fitted sampler: {', '.join(map(str, worse)) or 'none'}.\n"
            )
        print("\n".join(parts[-4:]), flush=True)
    parts = [
        f"{versions('cpu')}; {args.num_images} samples, {len(SEEDS)} seeds that were not fitted to. RMS distance from "
        f"the converged end, that of {CONVERGED_STEPS} steps of order 3: fitted, best of diffusers', and ratio.\n",
        summary(tables, COUNTS, 0),
        "Most of that is a few samples between two digits, which end as the other one. The median distance instead:\n",
        summary(tables, COUNTS, 1),
        f"Fréchet distance in pixels; samples of the distribution have {floor:.3f}.\n",
        summary(tables, COUNTS, 2),
        *parts,
    ]
    print("\n".join(parts[:6]), flush=True)
    if args.plot is not None:
        plot(tables, args.plot)
    update(args.update, "few-steps", "\n".join(parts))
    return tables


def quiet():
    """Some settings of diffusers' samplers warn at every step."""
    warnings.filterwarnings("ignore")
    for name in ("diffusers", "ddim_scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    run(main)
