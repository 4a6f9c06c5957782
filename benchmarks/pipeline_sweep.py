# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs every pipeline of diffusers that can take a scheduler with betas, from tiny random parts, with the built-in
DDIMScheduler and with EtaDDIMScheduler, swapped and given to the constructor. Prints a line for each and the totals.

    python benchmarks/pipeline_sweep.py --update RESULTS.md
    python benchmarks/pipeline_sweep.py --only StableDiffusionPipeline --traceback
"""

import argparse
import contextlib
import functools
import inspect
import logging
import os
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import that reads it

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DDIMParallelScheduler, DDIMScheduler, DiffusionPipeline
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from ddim_scheduler import EtaDDIMScheduler, command_line

from report import check, update
from tiny_pipelines import annotated_classes, arguments, build, built_in, pipeline_class

STEPS = 5  # divides 1000: the built-in is right with `leading`
TOLERANCE = 1e-3
BETAS = {e.name for e in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"}
BETAS |= {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "LCMScheduler", "SchedulerMixin"}
BETAS |= {"KarrasDiffusionSchedulers"}


# ----------------------------------------------------------------------------------------------------- which pipelines


def kind(cls: type) -> str:
    """Of a pipeline: `betas`, `flow`, `other` (schedulers with a step of their own), `none` or `missing` (packages)."""
    if cls.__module__.startswith("diffusers.utils.dummy"):
        return "missing"
    parameters = inspect.signature(cls.__init__).parameters
    if "scheduler" not in parameters:
        return "none"
    names = {c.__name__ for c in annotated_classes(parameters["scheduler"])}
    if names & BETAS:
        return "betas"
    return "flow" if any("Flow" in name for name in names) else "other"


def pipelines() -> dict[str, str]:
    """The pipelines of diffusers and their kinds."""
    names = {n for module in (diffusers, diffusers.pipelines) for n in dir(module) if "Pipeline" in n}
    found = {}
    for name in sorted(names):
        with contextlib.suppress(AttributeError, ImportError):  # a name in the list of a module that has it no more
            cls = pipeline_class(name)
            dummy = cls.__module__.startswith("diffusers.utils.dummy")
            is_pipeline = isinstance(cls, type) and cls.__module__.startswith("diffusers.")
            if is_pipeline and (dummy or (issubclass(cls, DiffusionPipeline) and "__call__" in dir(cls))):
                found[name] = kind(cls)
    return found


# -------------------------------------------------------------------------------------------------------------- running


@contextlib.contextmanager
def recorded_steps(*classes: type) -> Iterator[list[dict[str, Any]]]:
    """The arguments of each call of `step` of these and, under "sample", the sample that it returned."""
    calls: list[dict[str, Any]] = []
    depth = 0

    def spy_on(step):
        @functools.wraps(step)
        def spy(*args, **kwargs):
            nonlocal depth
            depth += 1
            try:
                result = step(*args, **kwargs)
            finally:
                depth -= 1
            if depth == 0:  # one of them may call another
                arguments = inspect.signature(step).bind(*args, **kwargs).arguments
                sample = (
                    result
                    if isinstance(result, torch.Tensor)
                    else next(iter(tuple(result.values()) if isinstance(result, dict) else result))
                )
                calls.append({**arguments, "sample": sample})
            return result

        return spy

    owners = {
        (next(owner for owner in cls.__mro__ if name in vars(owner)), name)
        for cls in classes
        for name in ("step", "batch_step_no_noise")
        if hasattr(cls, name)
    }
    methods = [(cls, name, vars(cls)[name]) for cls, name in owners]
    for cls, name, method in methods:
        setattr(cls, name, spy_on(method))
    try:
        yield calls
    finally:
        for cls, name, method in methods:
            setattr(cls, name, method)


def tensors(output: Any) -> list[torch.Tensor]:
    """All arrays and images of what a call returned."""
    if isinstance(output, list | tuple):
        return [tensor for entry in output for tensor in tensors(entry)]
    if isinstance(output, dict):
        return tensors(list(output.values()))
    if hasattr(output, "getbands"):
        output = np.asarray(output)
    return [torch.as_tensor(output).float()] if isinstance(output, torch.Tensor | np.ndarray) else []


class Run(NamedTuple):
    scheduler: type  # that the pipeline had in the end
    tensors: list[torch.Tensor]  # the result, and the sample after each step
    etas: set
    generator_arrived: bool


def run(name: str, scheduler, swap: type | None = None, eta: float = 0.0) -> Run:
    pipe = build(name, scheduler)
    if swap is not None:
        pipe.scheduler = swap.from_config(pipe.scheduler.config)
    parameters = inspect.signature(pipe.__call__).parameters
    generator = torch.Generator().manual_seed(0)
    given = {"num_inference_steps": STEPS, "generator": generator, "eta": eta, "return_dict": False}
    call = {key: value for key, value in given.items() if key in parameters}
    call |= arguments(pipe)
    torch.manual_seed(0)  # some pipelines give no generator to `step`
    np.random.seed(0)  # noqa: NPY002 - what some pipelines draw from
    with recorded_steps(DDIMScheduler, DDIMParallelScheduler, EtaDDIMScheduler) as steps:
        output = tensors(pipe(**call))
    if not steps:
        raise RuntimeError(f"it made no step: {type(pipe.scheduler).__name__} took its place")
    samples = [step["sample"].detach().float() for step in steps]
    if not all(tensor.isfinite().all() for tensor in output + samples):
        raise RuntimeError("the result is not finite")
    etas = {step.get("eta") for step in steps}
    return Run(type(pipe.scheduler), output + samples, etas, all(s.get("generator") is generator for s in steps))


def difference(ours: Run, theirs: Run) -> float:
    """Largest difference of two runs' tensors, relative to those above 1."""
    if [t.shape for t in ours.tensors] != [t.shape for t in theirs.tensors]:
        return float("inf")
    pairs = zip(ours.tensors, theirs.tensors, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs if a.numel())


class Row(NamedTuple):
    """What was found of one pipeline; an empty string is no error."""

    builtin: str
    swapped: str
    constructed: str
    equal: str  # "" or the difference
    eta: str
    generator: str

    def __str__(self) -> str:
        if self.builtin:
            return f"not with the built-in either: {self.builtin}"
        return "; ".join(f"{field} {value}" for field, value in self._asdict().items() if value) or "ok"


def sweep(name: str, show_traceback: bool = False) -> Row:
    def attempt(*args, **kwargs) -> tuple[Run | None, str]:
        try:
            return run(name, *args, **kwargs), ""
        except Exception as error:
            if show_traceback:
                traceback.print_exc()
            return None, f"{type(error).__name__}: {error}".split("\n")[0][:160]

    theirs, error = attempt(built_in(name))
    if theirs is None:
        return Row(error, *["not tried"] * 5)
    ours, swapped = attempt(built_in(name), swap=EtaDDIMScheduler)
    given, constructed = attempt(EtaDDIMScheduler.from_config(built_in(name).config))
    if given is not None and not issubclass(given.scheduler, EtaDDIMScheduler):
        constructed = f"replaced by {given.scheduler.__name__}"
    takes_eta = "eta" in inspect.signature(pipeline_class(name).__call__).parameters
    reference, _ = attempt(built_in(name), eta=0.3) if takes_eta else (None, "")
    if ours is None:
        eta = "not tried" if reference is not None else "not taken"
        generator = "not tried" if theirs.generator_arrived else "not given"
        return Row("", swapped, constructed, "not tried", eta, generator)
    distances = [difference(other, theirs) for other in (ours, given) if other is not None]
    equal = "" if max(distances) < TOLERANCE else f"differ by {max(distances):.2g}"

    noisy, error = attempt(built_in(name), swap=EtaDDIMScheduler, eta=0.3) if reference is not None else (None, "")
    if reference is None:
        eta = "not taken"
    elif noisy is None:
        eta = error
    elif noisy.etas != {0.3}:
        eta = f"not given: {noisy.etas}" if noisy.etas == reference.etas else f"lost: {noisy.etas}"
    else:
        distance = difference(noisy, reference)
        eta = "" if distance < TOLERANCE else f"arrives, and the results differ by {distance:.2g}"
    generator = "" if ours.generator_arrived else "lost" if theirs.generator_arrived else "not given"
    return Row("", swapped, constructed, equal, eta, generator)


# ------------------------------------------------------------------------------------------------------------ the table


def count(rows: dict[str, Row], field: str) -> str:
    ran = [row for row in rows.values() if not row.builtin]
    return f"{sum(not getattr(row, field) for row in ran)} of {len(ran)}"


def table(kinds: Counter, rows: dict[str, Row]) -> str:
    ran = {name: row for name, row in rows.items() if not row.builtin}
    no_eta = sum(row.eta == "not taken" for row in ran.values())
    no_generator = sum(row.generator == "not given" for row in ran.values())
    lines = [
        f"| {kinds['betas']} pipelines of diffusers {diffusers.__version__} that take a schedule of betas | |",
        "|---|---|",
        f"| ran with the built-in DDIMScheduler | {len(ran)} |",
        f"| of them, ran with ours swapped | {count(rows, 'swapped')} |",
        f"| ran with ours given to the constructor, which kept it | {count(rows, 'constructed')} |",
        f"| the same as the built-in to {TOLERANCE:g}, every step and the result, `leading`, {STEPS} steps, eta 0 | "
        f"{count(rows, 'equal')} |",
        f"| eta 0.3 reached each step, with the built-in's results | {sum(not r.eta for r in ran.values())} of "
        f"{len(ran) - no_eta} that take one |",
        f"| the generator reached each step | {sum(not r.generator for r in ran.values())} of "
        f"{len(ran) - no_generator} that give one to the built-in |",
    ]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------- the command


def run_sweep(
    argv: list[str] | None,
    description: str,
    names: list[str],
    sweep: Callable[[str, bool], Any],
    table: Callable[[dict[str, Any]], str],
    marker: str,
) -> dict[str, Any]:
    """
    The command of a sweep: prints a line for each pipeline and the table, and returns the rows.

    Args:
        argv: The command line, or `None` for that of the process.
        description: What the command does.
        names: All pipelines of the sweep.
        sweep: Makes the row of a pipeline, which is printed; with `True`, errors as well.
        table: Makes the table of the rows.
        marker: Where it stands in the document of `--update`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these pipelines alone")
    parser.add_argument("--update", type=Path, help="document to put the table into, between its markers")
    parser.add_argument("--traceback", action="store_true", help="print the traceback of each error")
    args = parser.parse_args(argv)
    check(args.update, marker)
    if args.only and args.update is not None:
        parser.error("--update is for the whole sweep: leave --only out.")
    unknown = [name for name in args.only if name not in pipelines()]
    if unknown:
        parser.error(f"diffusers {diffusers.__version__} has no {', '.join(unknown)}.")
    rows = {}
    for name in args.only or names:
        start = time.perf_counter()
        rows[name] = sweep(name, args.traceback)
        print(f"{name}: {rows[name]} ({time.perf_counter() - start:.1f} s)", flush=True)
    result = table(rows)
    print(result, end="")
    update(args.update, marker, result)
    return rows


def be_quiet():
    """Leaves out what diffusers, transformers and the schedulers say of tiny pipelines."""
    warnings.filterwarnings("ignore")
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    logging.getLogger("ddim_scheduler").setLevel(logging.ERROR)


def main(argv: list[str] | None = None) -> dict[str, Row]:
    """Prints a line for each pipeline and the table, and returns the rows."""
    kinds = pipelines()
    counts = Counter(kinds.values())
    print(", ".join(f"{kind}: {number}" for kind, number in counts.most_common()), f"of {len(kinds)} pipelines")
    description = "Run every pipeline of diffusers with EtaDDIMScheduler."
    names = [name for name, kind in kinds.items() if kind == "betas"]
    return run_sweep(argv, description, names, sweep, partial(table, counts), "sweep")


if __name__ == "__main__":
    be_quiet()
    command_line.run(main)
