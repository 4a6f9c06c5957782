# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Samplers of few steps, fitted to a model by running it.

    python -m ddim_scheduler.fitting outputs/digits --steps 5 10 20

1. A teacher: trajectories of many steps of order 3, recorded (`TrajectoryRecorder`), from two sets of seeds.
2. A grid of N of their timesteps: the shortest path through them, where the length of a step is how far DDIM's step
   from the one lands from the other (`fit_timesteps`).
3. Weights: the sampler of N steps starts from the teacher's noise, and at each step takes the weights of the
   predictions before it by which it comes nearest to the teacher (`WeightFitter`).
4. Of a few such fits, the one that comes nearest to the teacher from the second set of seeds (`fit_table`).

`fit_sampler` does all that with any pipeline of diffusers that holds a scheduler of this package.
"""

import argparse
import inspect
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from . import EtaDDIMPipeline
from .command_line import Parser, add_device, run
from .fitted_tables import FittedTable
from .foreign_configs import is_of_flow_matching
from .generation import in_turn, read_conditions
from .scheduling_ddim import EtaDDIMScheduler
from .scheduling_ddim_inverse import EtaDDIMInverseScheduler
from .scheduling_flow_match import EtaFlowMatchScheduler
from .scheduling_flow_match_inverse import EtaFlowMatchInverseScheduler
from .sharing import SCHEDULER_CODE, SCHEDULER_ENTRY
from .trajectories import (
    CANDIDATES,
    MAX_ELEMENTS,
    TrajectoryRecorder,
    WeightFitter,
    changed,
    distance,
    fit_table,
    fit_timesteps,
    student_of,
    teacher_of,
    with_tables,
)
from .validation import check_integer

__all__ = [
    "TrajectoryRecorder",
    "WeightFitter",
    "fit_sampler",
    "fit_table",
    "fit_timesteps",
    "student_of",
    "teacher_of",
    "with_tables",
]
TEACHER_STEPS = 80
FITTED_SEED, HELD_OUT_SEED = 0, 1  # each of a whole batch
BATCH_ARGUMENTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")


def fit_sampler(
    pipe: DiffusionPipeline,
    num_inference_steps: Iterable[int] = (5, 8, 10, 15, 20),
    teacher_steps: int = TEACHER_STEPS,
    seeds: int = 16,
    max_elements: int = MAX_ELEMENTS,
    **arguments: Any,
) -> Any:
    """
    Fits samplers of few steps to a pipeline: `pipe.scheduler = fit_sampler(pipe, [5, 10, 20])`.

    It calls the pipeline with generators of its own, one for each batch, prints what it needs before, and a report
    after: the root mean square distance of the ends from those of the teacher, for order 1 on the scheduler's own grid
    and fitted, from noise that was not fitted to.

    Args:
        pipe (`DiffusionPipeline`): One with a scheduler of this package. It is left as it was.
        num_inference_steps (`list[int]`, defaults to 5, 8, 10, 15, 20): The numbers of steps to fit.
        teacher_steps (`int`, defaults to 80): Steps of the teacher, at least the largest of these numbers.
        seeds (`int`, defaults to 16):
            Number of trajectories, all in one batch; as many again are held out. With a list of P prompts or class
            labels it is rounded to a multiple of P. A pipeline whose call has no argument for it makes one for each.
        max_elements (`int`, defaults to 262,144): As in `TrajectoryRecorder`: what is kept of the batch.
        arguments: Of the pipeline's call: prompts, guidance, size...

    Returns:
        A scheduler like the pipeline's with the new tables beside those that it had, and `timestep_spacing="fitted"`,
        or `use_fitted_sigmas` for a flow model. x_0 is not clipped, since that cannot be fitted.

    Raises:
        ValueError, TypeError: Before any work, for an argument of wrong value or a scheduler that is not ours; or if
            the pipeline does not do the steps that it is asked for (a `strength`, for instance).
    """
    scheduler: Any = getattr(pipe, "scheduler", None)
    is_inverse = isinstance(scheduler, EtaDDIMInverseScheduler | EtaFlowMatchInverseScheduler)
    if is_inverse or not isinstance(scheduler, EtaDDIMScheduler | EtaFlowMatchScheduler):
        raise TypeError(
            f"`pipe` must hold a scheduler of this package, for sampling, but holds a {type(scheduler).__name__}: set "
            "`pipe.scheduler = EtaDDIMScheduler.from_config(pipe.scheduler.config)` first, or EtaFlowMatchScheduler."
        )
    if not isinstance(num_inference_steps, Iterable):
        raise TypeError(f"`num_inference_steps` must be a list of numbers of steps, but is {num_inference_steps!r}.")
    numbers = [*num_inference_steps]
    check_integer("teacher_steps", teacher_steps, 2, scheduler.config.num_train_timesteps)
    check_integer("seeds", seeds, 1)
    if not numbers:
        raise ValueError("`num_inference_steps` must hold at least one number of steps, but is empty.")
    counts = sorted({check_integer("num_inference_steps", N, 1, teacher_steps) for N in numbers})
    arguments, batch_size = _with_batch(pipe, seeds, arguments)

    # the teacher with both sets of seeds; for each N every fit with both, and order 1 with the held-out one
    total = 2 * teacher_steps + sum((2 * len(CANDIDATES) + 1) * N for N in counts)
    first_order, own = _first_order_of(scheduler)
    settings = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    megabytes = 2 * 2 * 8 * teacher_steps * max_elements / 2**20
    print(f"{total} steps of {batch_size} samples; at most {megabytes:.0f} MB to keep trajectories in")
    rows = []
    try:
        with tqdm(total=total, desc="Fitting", disable=None) as progress:

            def loop(watcher: Any, N: int, is_held_out: bool) -> Any:
                generator = torch.Generator().manual_seed(HELD_OUT_SEED if is_held_out else FITTED_SEED)
                watcher.on_step, pipe.scheduler = progress.update, watcher.scheduler
                with watcher:
                    pipe(num_inference_steps=N, generator=generator, **arguments)
                done = len(watcher.timesteps if isinstance(watcher, TrajectoryRecorder) else watcher.table["weights"])
                if done != N:
                    raise ValueError(f"The pipeline did {done} of {N} steps: a fit needs all of them.")
                return watcher

            teacher, held_out = (
                loop(TrajectoryRecorder(teacher_of(scheduler), max_elements), teacher_steps, is_held_out)
                for is_held_out in (False, True)
            )
            tables: dict[str, FittedTable] = {}
            for N in counts:
                tables[str(N)], after, fitting = fit_table(scheduler, N, teacher, held_out, loop)
                end = loop(TrajectoryRecorder(first_order, max_elements), N, True).samples[-1]
                rows.append((N, distance(end, held_out.samples[-1]), after, fitting))
    finally:
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(**{"disable": False, **settings})
    print(f"Distance from {teacher_steps} steps of order 3, root mean square, by seeds that no weights were fitted to:")
    print(f"steps   order 1, {own:<9}   fitted   (by the fitted seeds)")
    for N, before, after, fitting in rows:
        print(f"{N:5d}   {before:18.4f}   {after:6.4f}   ({fitting:.4f})")
    kept = scheduler.config.fitted_tables or {}
    return with_tables(scheduler, {**kept, **tables})


def _first_order_of(scheduler: Any) -> tuple[Any, str]:
    """The scheduler without a history, on its own grid, and the name of that."""
    if not isinstance(scheduler, EtaDDIMScheduler):
        return changed(scheduler, use_fitted_sigmas=False, solver_order=1, fitted_tables=None), "its own"
    own = scheduler.config.timestep_spacing
    own = "trailing" if own == "fitted" else own
    return changed(scheduler, timestep_spacing=own, solver_order=1, fitted_tables=None), own


def _with_batch(pipe: DiffusionPipeline, seeds: int, arguments: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The arguments of a call that makes a batch of about that many samples, and their exact number."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    for name in ("generator", "seed", "num_inference_steps"):
        if name in arguments:
            raise ValueError(f"`{name}` is set by the fit, but is given as {arguments[name]!r}.")
    if "output_type" in parameters:
        arguments = {"output_type": "latent", **arguments}
    labels = arguments.get("class_labels")
    rows = next(
        (len(given) for given in (arguments.get("prompt"), labels) if isinstance(given, list | torch.Tensor)), 1
    )
    each = max(1, seeds // max(1, rows))
    if "batch_size" in parameters:
        if "batch_size" not in arguments and isinstance(labels, list | torch.Tensor):
            arguments = {**arguments, "class_labels": torch.as_tensor(labels).repeat(each)}
        arguments = {"batch_size": rows * each, **arguments}
        return arguments, arguments["batch_size"]
    for name in BATCH_ARGUMENTS:
        if name in parameters:
            arguments = {name: each, **arguments}
            return arguments, rows * arguments[name]
    return arguments, rows


def main(argv: list[str] | None = None):
    """Fits a saved pipeline, and saves its scheduler with the tables."""
    parser = Parser(
        prog="python -m ddim_scheduler.fitting",
        description="Fit samplers of few steps to a saved pipeline.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("pipeline", help="folder of the pipeline; its scheduler is replaced, unless --output is given")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 10, 15, 20], help="numbers of steps to fit")
    parser.add_argument("--output", type=Path, help="folder to save the whole pipeline to, instead")
    parser.add_argument("--teacher_steps", type=int, help="steps of the teacher, at most T if not given (default: 80)")
    parser.add_argument("--seeds", type=int, default=16, help="trajectories to fit to")
    parser.add_argument("--arguments", type=json.loads, default={}, help="of the pipeline's call, a JSON dictionary")
    parser.add_argument("--condition_dir", help="pictures that the images of a model with a condition are made from")
    add_device(parser, "where to run it")
    args = parser.parse_args(argv)
    if not isinstance(args.arguments, dict):
        parser.error(f"--arguments must be a JSON dictionary, but is {args.arguments!r}")
    if min(args.steps) < 1:
        parser.error(f"--steps must be at least 1, but are {args.steps}")
    if not Path(args.pipeline).is_dir() and args.output is None:
        parser.error(f"--output is needed, since there is no folder {args.pipeline}")

    pipe = DiffusionPipeline.from_pretrained(args.pipeline).to(args.device)
    if not isinstance(pipe.scheduler, EtaDDIMScheduler | EtaFlowMatchScheduler):
        is_flow = is_of_flow_matching(pipe.scheduler.config)
        ours = EtaFlowMatchScheduler if is_flow else EtaDDIMScheduler
        pipe.scheduler = ours.from_config(pipe.scheduler.config)
    conditions = None
    if isinstance(pipe, EtaDDIMPipeline):
        conditions = read_conditions(args.condition_dir, pipe, args.seeds)
    elif args.condition_dir is not None:
        parser.error(f"--condition_dir belongs to an EtaDDIMPipeline, but {args.pipeline} is a {type(pipe).__name__}")
    pipe.scheduler = fit_saved(pipe, args.steps, args.teacher_steps, args.seeds, conditions, **args.arguments)
    if args.output is not None:
        pipe.save_pretrained(args.output)
    else:
        _replace_scheduler(pipe, Path(args.pipeline))
    print(f"The samplers are in {args.output or args.pipeline}")


def _replace_scheduler(pipe: Any, folder: Path):
    """Saves the pipeline's scheduler alone, and its name in the index. A kill leaves the former one or the new one."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as aside:
        pipe.scheduler.save_pretrained(aside)
        pipe.save_config(aside)
        files = {path.name: folder / "scheduler" / path.name for path in Path(aside).iterdir()}
        files[pipe.config_name] = folder / pipe.config_name
        last = (SCHEDULER_ENTRY, pipe.scheduler.config_name, pipe.config_name)  # which name others
        for name in sorted(files, key=lambda name: last.index(name) if name in last else -1):
            Path(aside, name).replace(files[name])
    for path in [path for pattern in SCHEDULER_CODE for path in (folder / "scheduler").glob(pattern)]:
        if path.name not in files:  # of another version of this package
            path.unlink()


def fit_saved(
    pipe: Any,
    steps: Iterable[int],
    teacher_steps: int | None = None,
    seeds: int = 16,
    conditions: Sequence[torch.Tensor] | torch.Tensor | None = None,
    **arguments: Any,
) -> Any:
    """
    `fit_sampler` with what a command does not ask for: as many steps of a teacher as there can be, and the classes of a
    class-conditional `UNet2DModel`, and the conditions of one that takes them, in turn.
    """
    if teacher_steps is None:
        teacher_steps = min(TEACHER_STEPS, pipe.scheduler.config.num_train_timesteps)
    classes = getattr(getattr(getattr(pipe, "unet", None), "config", None), "num_class_embeds", None)
    if classes and "class_labels" in inspect.signature(type(pipe).__call__).parameters:
        arguments.setdefault("class_labels", [k % max(1, classes - 1) for k in range(seeds)])
    if conditions is not None:
        arguments.setdefault("condition", in_turn(conditions, range(seeds)))
    return fit_sampler(pipe, steps, teacher_steps, seeds, **arguments)


if __name__ == "__main__":
    run(main)
