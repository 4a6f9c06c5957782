# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Samplers of few steps: fitted ones and ours of order 1 to 3 beside the multistep samplers of diffusers, each of these at
the best of its settings for every number of steps. All start from the same noise, which nothing was fitted to.

    python benchmarks/few_steps.py data/digits/test

With the distribution of `closed_form.py`, whose denoiser is exact: linear betas, cosine betas, and zero terminal SNR.
`--model models/digits` adds a trained model, which brings its own tables.
"""

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)
from matplotlib.figure import Figure

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
from ddim_scheduler.evaluation import frechet_distance
from ddim_scheduler.fitting import RIDGES, TrajectoryRecorder, WeightFitter, fit_timesteps, student_of, teacher_of
from ddim_scheduler.timestep_grids import TIMESTEP_SPACINGS

from closed_form import BLUR, SIZE, digits, draw
from report import around, update, versions

COUNTS = (5, 6, 8, 10, 15, 20)
TRACKS: dict[str, dict[str, Any]] = {
    "linear betas": {},
    "cosine betas": {"beta_schedule": "squaredcos_cap_v2"},
    "zero terminal SNR, v": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    },
}
THEIRS: list[tuple[str, type, dict[str, Any]]] = [
    ("DPM-Solver++(2M)", DPMSolverMultistepScheduler, {"solver_order": 2}),
    ("DPM-Solver++(3M)", DPMSolverMultistepScheduler, {"solver_order": 3}),
    ("DEIS-3", DEISMultistepScheduler, {"solver_order": 3}),
    ("UniPC-2", UniPCMultistepScheduler, {"solver_order": 2}),
    ("UniPC-3", UniPCMultistepScheduler, {"solver_order": 3}),
    ("LMS", LMSDiscreteScheduler, {}),
]
SETTINGS: list[dict[str, Any]] = [
    *({"timestep_spacing": spacing} for spacing in ("leading", "trailing", "linspace")),
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
]
SEEDS = (100, 101, 102)
FITTED_SEED = 0
Output = Callable[[torch.Tensor, float, float, Any], torch.Tensor]  # of x_t, alpha, sigma and t


class Track(NamedTuple):
    """A model: its output, its schedulers' settings, noise for a seed, and a distance of samples from the data."""

    output: Output
    settings: dict[str, Any]
    noise: Callable[[int, int], torch.Tensor]
    distance: Callable[[torch.Tensor], float] | None


def exact(data: torch.Tensor, settings: dict[str, Any]) -> Output:
    """The output of an exact model of the mixture of N(row, BLUR^2 I)."""

    def output(x: torch.Tensor, alpha: float, sigma: float, t: Any) -> torch.Tensor:
        total = sigma**2 + (alpha * BLUR) ** 2
        weights = torch.softmax((alpha * x @ data.T - alpha**2 * data.square().sum(1) / 2) / total, dim=1)
        mean = weights @ data
        x_0 = mean + alpha * BLUR**2 / total * (x - alpha * mean)
        epsilon = (x - alpha * x_0) / sigma
        return alpha * epsilon - sigma * x_0 if "prediction_type" in settings else epsilon

    return output


def sample(scheduler: Any, track: Track, x_T: torch.Tensor) -> torch.Tensor:
    """The end of the loop over the grid that is set."""
    x = x_T * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        if isinstance(scheduler, EtaDDIMScheduler):
            bar = scheduler.alphas_cumprod[t].double().item()
        else:  # the level itself, where the timestep is a rounded one
            bar = 1 / (1 + scheduler.sigmas[i].item() ** 2)
        output = track.output(scheduler.scale_model_input(x, t), bar**0.5, (1 - bar) ** 0.5, t)
        x = scheduler.step(output, t, x).prev_sample.to(x_T.dtype)
    return x


def ours(track: Track, **settings: Any) -> EtaDDIMScheduler:
    return EtaDDIMScheduler(clip_sample=False, **{**track.settings, **settings})


def fitted(track: Track, counts: Iterator[int] | tuple[int, ...], trajectories: int) -> EtaDDIMScheduler:
    """What `fit_sampler` does with a pipeline."""
    noise, scheduler, tables = track.noise(trajectories, FITTED_SEED), ours(track), {}
    recorded = teacher_of(scheduler)
    recorded.set_timesteps(80)
    with TrajectoryRecorder(recorded) as teacher:
        sample(recorded, track, noise)
    for N in counts:
        fits = []
        for ridge in RIDGES:
            student = student_of(scheduler, teacher, fit_timesteps(teacher, N))
            student.set_timesteps(N)
            with WeightFitter(student, teacher, ridge) as fitter:
                sample(student, track, noise)
            fits.append(fitter)
        tables[str(N)] = min(fits, key=lambda fitter: fitter.error).table
    return ours(track, timestep_spacing="fitted", fitted_tables=tables)


def candidates(track: Track, scheduler: EtaDDIMScheduler) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Names of samplers and of their settings, and schedulers anew."""
    yield "fitted", "", lambda: scheduler
    for order in (1, 2, 3):
        for spacing in TIMESTEP_SPACINGS:
            yield (
                f"ours, order {order}",
                spacing,
                lambda o=order, s=spacing: ours(track, solver_order=o, timestep_spacing=s),
            )
    for name, scheduler_class, arguments in THEIRS:
        for setting in SETTINGS:
            if name == "LMS" and "rescale_betas_zero_snr" in track.settings:
                continue  # which knows no such schedule
            label = setting.get("timestep_spacing") or next(iter(setting)).split("_")[1]
            yield (
                name,
                label,
                lambda c=scheduler_class, a=arguments, s=setting: c(**{**track.settings, **a, **s}),
            )


def measure(track: Track, scheduler: EtaDDIMScheduler, counts: tuple[int, ...], num_images: int) -> dict:
    """For every (sampler, setting, N): RMS distances from the converged end, and distances from the data."""
    results: dict[tuple[str, str, int], tuple[list[float], list[float]]] = {}
    for seed in SEEDS:
        x_T = track.noise(num_images, seed)
        reference = ours(track, timestep_spacing="angle", solver_order=3)
        reference.set_timesteps(300 if track.distance is not None else 100)
        end = sample(reference, track, x_T)
        for name, setting, make in candidates(track, scheduler):
            for N in counts:
                if name == "fitted" and str(N) not in scheduler.config.fitted_tables:
                    continue
                try:
                    one = make()
                    one.set_timesteps(N)
                    x = sample(one, track, x_T)
                    error = (x - end).square().mean().sqrt().item()
                except (ValueError, IndexError, RuntimeError, AssertionError):  # some settings end in these
                    error = float("nan")
                errors, distances = results.setdefault((name, setting, N), ([], []))
                errors.append(error if error == error else float("inf"))
                if track.distance is not None:
                    distances.append(track.distance(x) if error < 10 else float("inf"))
    return results


def best(results: dict, name: str, N: int, column: int) -> tuple[float, str]:
    """The smallest mean over the seeds among the settings of a sampler, and the setting."""
    means = [(statistics.mean(v[column]), s) for (n, s, count), v in results.items() if (n, count) == (name, N)]
    return min(means, default=(float("nan"), ""))


def table(results: dict, counts: tuple[int, ...], column: int) -> str:
    """Each sampler at the best of its settings, by its RMS or its distance."""
    lines = ["| calls | " + " | ".join(map(str, counts)) + " |", "|---|" + "---|" * len(counts)]
    for name in dict.fromkeys(name for name, *_ in results):
        cells = (best(results, name, N, column) for N in counts)
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f} {setting}".strip() for value, setting in cells) + " |")
    their_names = {name for name, *_ in THEIRS}
    cells = [min(best(results, name, N, column)[0] for name in their_names & {n for n, *_ in results}) for N in counts]
    lines.append("| **best of diffusers'** | " + " | ".join(f"{value:.3f}" for value in cells) + " |")
    return "\n".join(lines) + "\n"


def by_spacing(results: dict, counts: tuple[int, ...]) -> str:
    """RMS of order 1, 2 and 3 on each spacing."""
    lines = [f"| RMS of order 1, 2, 3 | {' | '.join(f'{N} calls' for N in counts)} |", "|---|" + "---|" * len(counts)]
    for spacing in TIMESTEP_SPACINGS:
        cells = ([statistics.mean(results[f"ours, order {k}", spacing, N][0]) for k in (1, 2, 3)] for N in counts)
        lines.append(f"| `{spacing}` | " + " | ".join(", ".join(f"{v:.3f}" for v in cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def worse_counts(track: Track, num_images: int) -> list[int]:
    """The N of 3..50 at which the fitted sampler is farther from the end than order 1 on the best of its spacings."""
    counts = tuple(range(3, 51))
    scheduler, x_T, worse = fitted(track, counts, 32), track.noise(num_images, SEEDS[0]), []
    reference = ours(track, timestep_spacing="angle", solver_order=3)
    reference.set_timesteps(300)
    end = sample(reference, track, x_T)
    for N in counts:
        errors = []
        for one in [scheduler, *(ours(track, timestep_spacing=spacing) for spacing in TIMESTEP_SPACINGS)]:
            one.set_timesteps(N)
            errors.append((sample(one, track, x_T) - end).square().mean().item())
        if errors[0] > min(errors[1:]):
            worse.append(N)
    return worse


def plot(tables: dict[str, dict], counts: tuple[int, ...], path: Path):
    """RMS against the number of calls, for each track."""
    figure = Figure(figsize=(3.2 * len(tables), 3.6), layout="constrained")
    for axes, (title, results) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        for i, name in enumerate(dict.fromkeys(name for name, *_ in results)):
            style = f"C{i}{'-' if i < 4 else '--'}"
            axes.plot(counts, [best(results, name, N, 0)[0] for N in counts], style, marker=".", label=name)
        axes.set(title=title, xlabel="calls", xscale="log", yscale="log", ylim=(0.003, 0.4))
        axes.set_xticks(counts, counts)
        axes.minorticks_off()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


@torch.no_grad()
def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Prints the tables, and returns the figures in them."""
    parser = argparse.ArgumentParser(
        description="Samplers of few steps, ours and those of diffusers, from the same noise.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("data_dir", type=Path, help="folder of digits")
    parser.add_argument("--num_images", type=int, default=200, help="samples for each cell and seed")
    parser.add_argument("--model", type=Path, help="folder of an EtaDDIMPipeline with fitted tables")
    parser.add_argument("--num_model_images", type=int, default=16, help="samples of the model for each cell and seed")
    parser.add_argument("--every_count", action="store_true", help="also compare with order 1 at each of 3..50 steps")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("--update", type=Path, help="document to put the tables into, between its markers")
    args = parser.parse_args(argv)
    if args.num_images <= SIZE**2:
        parser.error(f"--num_images must be more than {SIZE**2}")
    if args.update is not None:
        around(args.update, "few-steps")
    warnings.filterwarnings("ignore")
    for name in ("diffusers", "ddim_scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)

    data = digits(args.data_dir)
    reference = draw(data, 20 * args.num_images, seed=1000)
    floor = statistics.mean(frechet_distance(draw(data, args.num_images, seed), reference) for seed in SEEDS)
    tables, parts = {}, [f"{versions('cpu')}; {args.num_images} samples, {len(SEEDS)} seeds that were not fitted to.\n"]

    def noise(number: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(number, data.shape[1], generator=generator, dtype=torch.float64)

    for title, settings in TRACKS.items():
        track = Track(exact(data, settings), settings, noise, lambda x: frechet_distance(x, reference))
        tables[title] = measure(track, fitted(track, COUNTS, 32), COUNTS, args.num_images)
        parts.append(f"Exact model, {title}: RMS distance from the converged end (300 steps of order 3).\n")
        parts.append(table(tables[title], COUNTS, 0))
        parts.append(by_spacing(tables[title], (5, 10, 20)))
        parts.append(f"The same, Fréchet distance in pixels; samples of the distribution have {floor:.3f}.\n")
        parts.append(table(tables[title], COUNTS, 1))
        if args.every_count:
            worse = worse_counts(track, args.num_images)
            parts.append(
                f"Numbers of steps 3..50 at which order 1 on the best of its {len(TIMESTEP_SPACINGS)} spacings is "
                f"nearer than the fitted sampler: {worse or 'none'}.\n"
            )
        print("\n".join(parts[-6:]), flush=True)
    if args.model is not None:
        pipe = EtaDDIMPipeline.from_pretrained(args.model)
        config = pipe.scheduler.config
        settings = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type")}

        def image_noise(number: int, seed: int) -> torch.Tensor:
            size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
            return torch.randn(number, channels, size, size, generator=torch.Generator().manual_seed(seed))

        track = Track(lambda x, alpha, sigma, t: pipe.unet(x.float(), t).sample, settings, image_noise, None)
        tables[args.model.name] = measure(track, pipe.scheduler, COUNTS, args.num_model_images)
        parts.append(
            f"`{args.model}`, {args.num_model_images} samples for each seed: RMS distance from the converged end (100 "
            "steps of order 3).\n"
        )
        parts.append(table(tables[args.model.name], COUNTS, 0))
        print("\n".join(parts[-2:]))
    if args.plot is not None:
        plot(tables, COUNTS, args.plot)
    if args.update is not None:
        update(args.update, "few-steps", "\n".join(parts))
    return tables


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
