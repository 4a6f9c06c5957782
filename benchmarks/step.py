# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Times EtaDDIMScheduler against diffusers' DDIMScheduler, alternately in one run: a step, a loop, what comes before,
and a batch of samples at timesteps of their own.

    python benchmarks/step.py --device cpu --plot docs/step.png
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import diffusers
import torch
from diffusers import DDIMScheduler

from ddim_scheduler import EtaDDIMScheduler
from ddim_scheduler.command_line import add_device, run

from report import check, update, versions

SHAPES = ((1, 3, 8, 8), (4, 4, 64, 64), (64, 3, 32, 32), (16, 4, 128, 128))
LOOP_SHAPES = ((64, 3, 32, 32), (8, 4, 128, 128))
LOOP_STEPS = 50
BATCHES = ((4096, 3), (4096, 3, 8, 8))  # a timestep for each sample
ROUNDS = 15
SECONDS_PER_ROUND = 0.02
IMPORTS = ("from diffusers import DDIMScheduler, DDPMPipeline", "import ddim_scheduler")


class Ratio(NamedTuple):
    """Median times of one call in seconds, and theirs over ours: median, and the middle half of the rounds."""

    theirs: float
    ours: float
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def main(argv: list[str] | None = None) -> dict[tuple, Ratio]:
    """Prints the tables and returns the ratios of the steps: by shape, dtype, eta, clipping and kind of timestep."""
    parser = argparse.ArgumentParser(description="Time the scheduler against diffusers', alternately.")
    add_device(parser, "cpu or cuda", "cpu")
    parser.add_argument("--update", type=Path, help="document to put the tables into, between their markers")
    parser.add_argument("--plot", type=Path, help="PNG to draw the times of a step into (needs matplotlib)")
    args = parser.parse_args(argv)
    check(args.update, *(f"{name}-{args.device}" for name in ("step", "loop", "start", "batch")))
    diffusers.logging.set_verbosity_error()
    # Freed at once. From then on glibc's malloc keeps what is freed, as in a process that has run a UNet. Otherwise it
    # may give memory back after each step, and the page faults of the next one are most of the time at large sizes.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    print(measured_with := versions(args.device))

    ratios, copies = time_steps(args.device)
    tables = {
        "step": f"{measured_with}; both outputs as a tuple, at eta = 1 with the noise drawn before; {method()}\n\n"
        + step_table(ratios, copies),
        "loop": f"{measured_with}; {LOOP_STEPS} steps, eta = 0, clip_sample, no model; {method()}\n\n"
        + loop_table(args.device),
        "start": f"{measured_with}; {method()}\n\n" + start_table(),
        "batch": f"{measured_with}; float32, eta = 0, clip_sample; {method()}\n\n" + batch_table(args.device),
    }
    for name, table in tables.items():
        print(f"\n{table}", end="")
        update(args.update, f"{name}-{args.device}", table)
    if args.plot is not None:
        plot(ratios, copies, measured_with, args.plot)
    return ratios


def method() -> str:
    return f"medians of {ROUNDS} alternating rounds, the middle half of the rounds in brackets."


# ------------------------------------------------------------------------------------------------------------ measuring


def alternate(*functions: Callable, device: str) -> list[tuple[float, ...]]:
    """Seconds of one call of each function: a tuple for each round, in which they take turns."""
    counts = [max(1, round(SECONDS_PER_ROUND / seconds(f, 20, device))) for f in functions]
    return [tuple(seconds(f, n, device) for f, n in zip(functions, counts, strict=True)) for _ in range(ROUNDS)]


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


def ratio_of(theirs: list[float], ours: list[float]) -> Ratio:
    per_round = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    quarter = len(per_round) // 4
    return Ratio(*map(statistics.median, (theirs, ours, per_round)), per_round[quarter], per_round[-1 - quarter])


def compare(theirs: Callable, ours: Callable, device: str = "cpu") -> Ratio:
    return ratio_of(*(list(column) for column in zip(*alternate(theirs, ours, device=device), strict=True)))


# --------------------------------------------------------------------------------------------------------------- a step


def time_steps(device: str) -> tuple[dict[tuple, Ratio], dict[tuple, float]]:
    """The ratios of a step, and the seconds of copying two such tensors, which is 2 reads and 2 writes."""
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if device == "cuda" else [])]
    kinds = ["int", "cpu", *(["cuda"] if device == "cuda" else [])]
    ratios, copies = {}, {}
    for shape in SHAPES:
        for dtype in dtypes:
            model_output, sample, noise = torch.randn(3, *shape, device=device).to(dtype)
            targets = torch.empty_like(sample), torch.empty_like(sample)
            times = alternate(lambda s=(sample, model_output), t=targets: copy(s, t), device=device)
            copies[shape, dtype] = statistics.median(t for (t,) in times)
            for eta in (0.0, 1.0):
                for clip in (True, False):
                    for kind in kinds:
                        timestep = 500 if kind == "int" else torch.tensor(500, device=kind)
                        steps = []
                        for cls in (DDIMScheduler, EtaDDIMScheduler):
                            scheduler = cls(clip_sample=clip)
                            scheduler.set_timesteps(50, device=None if kind == "int" else kind)
                            arguments = {"eta": eta, "variance_noise": noise if eta else None, "return_dict": False}
                            steps.append(partial(scheduler.step, model_output, timestep, sample, **arguments))
                        ratios[shape, dtype, eta, clip, kind] = compare(*steps, device=device)
    return ratios, copies


def copy(sources: tuple[torch.Tensor, ...], targets: tuple[torch.Tensor, ...]):
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def step_table(ratios: dict[tuple, Ratio], copies: dict[tuple, float]) -> str:
    kinds = list(dict.fromkeys(key[-1] for key in ratios))
    titles = {"int": "int timestep", "cpu": "CPU tensor", "cuda": "CUDA tensor"}
    lines = [
        "| sample | dtype | eta | clip | "
        + " | ".join(f"{titles[kind]}: diffusers, µs | ours, µs | ratio" for kind in kinds)
        + " | two copies, µs | ours over copies |",
        "|---|---|---|---|" + "---|---|---|" * len(kinds) + "---|---|",
    ]
    for shape, dtype, eta, clip in dict.fromkeys(key[:-1] for key in ratios):
        row = [ratios[shape, dtype, eta, clip, kind] for kind in kinds]
        cells = " | ".join(f"{r.theirs * 1e6:.0f} | {r.ours * 1e6:.0f} | {r}" for r in row)
        limit = copies[shape, dtype]
        lines.append(
            f"| {shape} | {str(dtype).removeprefix('torch.')} | {eta:.0f} | {'yes' if clip else 'no'} | {cells} | "
            f"{limit * 1e6:.0f} | {row[0].ours / limit:.1f} |"
        )
    return "\n".join(lines) + "\n\n" + k_diffusion_line()


def k_diffusion_line() -> str:
    """The same for the Euler step of k-diffusion, where its package can be imported: it needs torchvision."""
    try:
        from k_diffusion.sampling import sample_euler
    except Exception as error:  # without torchvision, or with one of another torch
        return f"Euler step of k-diffusion: not measured, its package cannot be imported here ({error}).\n"
    times = []
    for shape in SHAPES:
        sample, denoised = torch.randn(2, *shape)
        sigmas = torch.linspace(10, 0.1, LOOP_STEPS + 1)
        scheduler = EtaDDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(LOOP_STEPS)
        loop = partial(sample_euler, lambda x, sigma, d=denoised: d, sample, sigmas, disable=True)
        ratio = compare(loop, partial(run_loop, scheduler, denoised, sample))
        times.append(f"{ratio.theirs / LOOP_STEPS * 1e6:.0f} µs and {ratio.ours / LOOP_STEPS * 1e6:.0f} µs at {shape}")
    return f"Euler step of k-diffusion and ours without clipping, in a loop on the CPU: {'; '.join(times)}.\n"


def plot(ratios: dict[tuple, Ratio], copies: dict[tuple, float], measured_with: str, path: Path):
    """Time of a float32 step at eta = 0 with clipping against the size of the sample."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    drawn = {key[0]: ratio for key, ratio in ratios.items() if key[1:] == (torch.float32, 0.0, True, "cpu")}
    sizes = [torch.Size(shape).numel() for shape in drawn]
    for label, style, times in (
        ("diffusers' DDIMScheduler", "o-", [ratio.theirs for ratio in drawn.values()]),
        ("EtaDDIMScheduler", "s-", [ratio.ours for ratio in drawn.values()]),
        ("copying two tensors of that size", "--", [copies[shape, torch.float32] for shape in drawn]),
    ):
        axes.loglog(sizes, [1e6 * t for t in times], style, label=label)
    axes.set_xlabel("elements of the sample")
    axes.set_ylabel("µs")
    axes.set_title(f"One step, float32, eta = 0, clipping\n{measured_with}", fontsize="medium")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# --------------------------------------------------------------------------------------------------------------- a loop


def run_loop(scheduler, model_output: torch.Tensor, sample: torch.Tensor, step: Callable | None = None) -> torch.Tensor:
    for t in scheduler.timesteps:
        sample = (step or scheduler.step)(model_output, t, sample, return_dict=False)[0]
    return sample


def loop_table(device: str) -> str:
    """Loops of scheduler steps: eager, with the compiled step, and on a GPU replayed as one CUDA graph."""
    dtypes = (torch.float16, torch.bfloat16) if device == "cuda" else (torch.float32,)
    lines = [
        "| sample | dtype | diffusers, ms | ours, ms | ratio | compiled step, ms | ratio | CUDA graph, ms | ratio |"
        " kernels per step, diffusers and ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in LOOP_SHAPES:
        for dtype in dtypes:
            model_output, sample = torch.randn(2, *shape, device=device).to(dtype)
            loops = []
            for cls in (DDIMScheduler, EtaDDIMScheduler):
                scheduler = cls()
                scheduler.set_timesteps(LOOP_STEPS, device=device)
                loops.append(partial(run_loop, scheduler, model_output, sample))
            compiled = torch.compile(scheduler.step, fullgraph=True)
            loops.append(partial(run_loop, scheduler, model_output, sample, compiled))
            if device == "cuda":
                loops.append(graph_of(loops[1]).replay)
            theirs, *ours = (list(column) for column in zip(*alternate(*loops, device=device), strict=True))
            ratios = [ratio_of(theirs, times) for times in ours]
            cells = [f"{r.ours * 1e3:.2f} | {r}" for r in ratios] + ["| "] * (3 - len(ratios))
            launches = [f"{kernels(loop) / LOOP_STEPS:.0f}" for loop in loops[:2]] if device == "cuda" else []
            lines.append(
                f"| {shape} | {str(dtype).removeprefix('torch.')} | {ratios[0].theirs * 1e3:.2f} | "
                f"{' | '.join(cells)} | {', '.join(launches)} |"
            )
    return "\n".join(lines) + "\n"


def graph_of(function: Callable) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # the warm-up that capturing needs
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def kernels(function: Callable) -> int:
    """Number of kernels that a call launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


# ---------------------------------------------------------------------------------------------------- before the step


def start_table() -> str:
    """Import, construction and `set_timesteps`."""
    theirs, ours = DDIMScheduler(), EtaDDIMScheduler()
    rows = {
        "construction": compare(DDIMScheduler, EtaDDIMScheduler),
        "`set_timesteps(50)`": compare(partial(theirs.set_timesteps, 50), partial(ours.set_timesteps, 50)),
    }
    lines = ["| | diffusers | ours | ratio |", "|---|---|---|---|"]
    lines += [f"| {name} | {r.theirs * 1e6:.0f} µs | {r.ours * 1e6:.0f} µs | {r} |" for name, r in rows.items()]
    times = [[import_seconds(statement) for statement in IMPORTS] for _ in range(5)]
    imports = ratio_of(*(list(column) for column in zip(*times, strict=True)))
    lines.append(
        f"| `{IMPORTS[0]}` and `{IMPORTS[1]}` in a fresh process | {imports.theirs:.2f} s | {imports.ours:.2f} s | "
        f"{imports} |"
    )
    return "\n".join(lines) + "\n"


def import_seconds(statement: str) -> float:
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return float(printed.split()[-1])


# ------------------------------------------------------------------------------------------- a timestep for each sample


def batch_table(device: str) -> str:
    """What is made of as many samples as timesteps. The built-in's step, which takes one timestep, is not in it."""
    theirs, ours = DDIMScheduler(), EtaDDIMScheduler()
    ours.set_timesteps(1000, device=device)
    lines = ["| samples | diffusers' `add_noise`, µs | ours, µs | ratio | our `step`, µs |", "|---|---|---|---|---|"]
    for shape in BATCHES:
        samples, noise = torch.randn(2, *shape, device=device)
        timesteps = torch.randint(1000, shape[:1], device=device)
        functions = [partial(scheduler.add_noise, samples, noise, timesteps) for scheduler in (theirs, ours)]
        functions.append(partial(ours.step, noise, timesteps, samples, return_dict=False))
        add_noise, of_ours, step = (list(column) for column in zip(*alternate(*functions, device=device), strict=True))
        ratio = ratio_of(add_noise, of_ours)
        lines.append(
            f"| {shape} | {1e6 * ratio.theirs:.0f} | {1e6 * ratio.ours:.0f} | {ratio} | "
            f"{1e6 * statistics.median(step):.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
