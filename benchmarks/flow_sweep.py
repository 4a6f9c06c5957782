# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs every pipeline of diffusers for flow models that can be built from tiny random parts, with the built-in
FlowMatchEulerDiscreteScheduler and with EtaFlowMatchScheduler swapped in. Prints a line for each and the totals.

    python benchmarks/flow_sweep.py --update RESULTS.md
    python benchmarks/flow_sweep.py --only FluxPipeline --traceback
"""

import contextlib
import inspect
import signal
import traceback
from collections.abc import Iterator
from typing import NamedTuple

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_flow_pipelines import arguments, build, built_in

from ddim_scheduler import EtaFlowMatchScheduler, command_line

from pipeline_sweep import be_quiet, pipelines, recorded_steps, run_sweep, tensors

STEPS = 3
SECONDS = 60  # for one call: some bring an image to a megapixel whatever they are given
TOLERANCE = 1e-3
# these have a solver of another class by default, and run with this scheduler as well
OTHERS = (
    *("BriaPipeline", "SanaControlNetPipeline", "SanaPipeline", "SanaVideoPipeline"),
    *("SkyReelsV2ImageToVideoPipeline", "SkyReelsV2Pipeline"),
)


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_):
        raise TimeoutError(f"it took more than {seconds} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def run(name: str, eta: float | None = None) -> list[torch.Tensor]:
    """The sample after each step and the result of a call with the built-in, or with ours and that eta."""
    torch.manual_seed(0)
    pipe = build(name, built_in(name))
    if eta is not None:
        pipe.scheduler = EtaFlowMatchScheduler.from_config(pipe.scheduler.config, eta=eta)
        pipe.scheduler.generator = torch.Generator().manual_seed(1)
    parameters = inspect.signature(pipe.__call__).parameters
    given = {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0), "return_dict": False}
    call = {key: value for key, value in given.items() if key in parameters} | arguments(pipe)
    torch.manual_seed(0)  # some pipelines draw from torch's global generator
    np.random.seed(0)  # noqa: NPY002 - or from numpy's
    with recorded_steps(FlowMatchEulerDiscreteScheduler, EtaFlowMatchScheduler) as steps:
        output = tensors(pipe(**call))
    if not steps:
        raise RuntimeError(f"it made no step: {type(pipe.scheduler).__name__} took its place")
    samples = [step["sample"].detach().float() for step in steps]
    if not all(tensor.isfinite().all() for tensor in output + samples):
        raise RuntimeError("the result is not finite")
    return output + samples


class Row(NamedTuple):
    """What was found of one pipeline; an empty string is no error."""

    builtin: str
    ours: str
    difference: float  # as deterministic or stochastic as the built-in: the largest of all, relative to values above 1
    noisy: str  # at eta = 0.5 and 1

    def __str__(self) -> str:
        if self.builtin:
            return f"not with the built-in either: {self.builtin}"
        errors = "; ".join(error for error in (self.ours, self.noisy) if error)
        return f"{errors or 'ok'}, differs by {self.difference:.1e} at eta 0"


def sweep(name: str, show_traceback: bool = False) -> Row:
    def attempt(*etas: float | None) -> tuple[list[torch.Tensor], str]:
        try:
            with time_limit(SECONDS):
                return [tensor for eta in etas for tensor in run(name, eta)], ""
        except Exception as error:
            if show_traceback:
                traceback.print_exc()
            return [], f"{type(error).__name__}: {error}".split("\n")[0][:140]

    theirs, builtin = attempt(None)
    if builtin:
        return Row(builtin, "not tried", float("inf"), "not tried")
    ours, error = attempt(1.0 if built_in(name).config.stochastic_sampling else 0.0)
    if error or [t.shape for t in ours] != [t.shape for t in theirs]:
        return Row("", error or "other shapes", float("inf"), "not tried")
    pairs = zip(ours, theirs, strict=True)
    difference = max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs if a.numel())
    return Row("", "", difference, attempt(0.5, 1.0)[1])


def table(rows: dict[str, Row]) -> str:
    ran = [row for row in rows.values() if not row.builtin]
    differences = [row.difference for row in ran if not row.ours]
    lines = [
        f"| {len(rows)} pipelines of diffusers {diffusers.__version__} for flow models | |",
        "|---|---|",
        f"| could be built from tiny parts and ran with the built-in scheduler | {len(ran)} |",
        f"| of them, ran with EtaFlowMatchScheduler | {len(differences)} |",
        f"| at eta 0 the same to {TOLERANCE:g}, every step and the result, {STEPS} steps | "
        f"{sum(difference < TOLERANCE for difference in differences)} |",
        f"| of them, bit for bit | {differences.count(0.0)} |",
        f"| largest difference at eta 0, relative to values above 1 | {max(differences, default=0):.1e} |",
        f"| finite at eta 0.5 and 1 | {sum(not row.noisy for row in ran)} |",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> dict[str, Row]:
    """Prints a line for each pipeline and the table, and returns the rows."""
    description = "Run the flow pipelines of diffusers with EtaFlowMatchScheduler."
    names = sorted([name for name, kind in pipelines().items() if kind == "flow"] + [*OTHERS])
    return run_sweep(argv, description, names, sweep, table, "flow-sweep")


if __name__ == "__main__":
    be_quiet()
    command_line.run(main)
