# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Samplers of few steps, fitted to a model by running it.

    python -m ddim_scheduler.fitting outputs/digits --steps 5 10 20

1. A teacher: trajectories of many steps of order 3, recorded (`TrajectoryRecorder`).
2. A grid of N of their timesteps: the shortest path through them, where the length of a step is how far DDIM's step
   from the one lands from the other (`fit_timesteps`).
3. Weights: the sampler of N steps starts from the teacher's noise, and at each step takes the weights of the
   predictions before it by which it comes nearest to the teacher (`WeightFitter`).

`fit_sampler` does all that with any pipeline of diffusers that holds a scheduler of this package.
"""

import argparse
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from . import EtaDDIMPipeline
from .command_line import Parser, run
from .fitted_tables import FittedTable
from .foreign_configs import is_of_flow_matching
from .generation import in_turn, read_conditions
from .multistep import FORMULA_WEIGHTS, MAX_ORDER
from .scheduling_ddim import EtaDDIMScheduler
from .scheduling_flow_match import EtaFlowMatchScheduler
from .validation import check_integer

# of the least squares, towards the weights of the formula: the smaller one serves few steps, the larger one many, whose
# predictions are nearly the same
RIDGES = (1e-3, 1e-1)
TEACHER_STEPS = 80
FITTED_SEED, HELD_OUT_SEED = 0, 1  # each of a whole batch
BATCH_ARGUMENTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
MAX_ELEMENTS = 2**18


class _Watcher:
    """Sees each step of a scheduler, between `with` and its end, before it is done and after."""

    def __init__(self, scheduler: Any, max_elements: int = MAX_ELEMENTS):
        check_integer("max_elements", max_elements, 1)
        self.scheduler, self.max_elements = scheduler, max_elements
        self.on_step: Callable[[], Any] = lambda: None

    def __enter__(self):
        step = self.scheduler.step
        signature = inspect.signature(step)

        @functools.wraps(step)  # pipelines look at its arguments
        def watched(model_output, timestep, sample, *args, **kwargs):
            given = signature.bind(model_output, timestep, sample, *args, **kwargs).arguments
            eta = given.get("eta")
            if (self.scheduler.config.eta if eta is None else eta) != 0:
                raise ValueError(f"`eta` must be 0 while a sampler is fitted, but is {eta!r}.")
            if given.get("per_token_timesteps") is not None:
                raise ValueError("`per_token_timesteps` are given, and a sampler with a history takes one timestep.")
            self._before(model_output, timestep, sample)
            output = step(model_output, timestep, sample, *args, **kwargs)
            self._after(output[0])
            self.on_step()
            return output

        self.scheduler.step = watched
        return self

    def __exit__(self, *error: Any):
        vars(self.scheduler).pop("step", None)

    def _thinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """At most `max_elements` elements, always the same ones."""
        flat = tensor.detach().flatten()
        if len(flat) > self.max_elements:
            generator = torch.Generator().manual_seed(0)
            flat = flat[torch.randperm(len(flat), generator=generator)[: self.max_elements].to(flat.device)]
        return flat.cpu().double()

    def _before(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor):
        raise NotImplementedError

    def _after(self, prev_sample: torch.Tensor):
        raise NotImplementedError


class TrajectoryRecorder(_Watcher):
    """
    Records the loop that is run while it is open: `with TrajectoryRecorder(scheduler) as teacher: ...`.

    Args:
        scheduler (`EtaDDIMScheduler` or `EtaFlowMatchScheduler`): The one that the loop uses, with eta = 0.
        max_elements (`int`, defaults to 262,144):
            How many elements of x_t and of x_0 are kept of each of the N steps, 16 bytes each for the two; a fixed
            random choice where there are more.

    Attributes:
        timesteps (`list`): N of them.
        alphas, sigmas (`list[float]`): N + 1, those of the timesteps and of the end.
        samples (`list[torch.Tensor]`): N + 1, x_t at the timesteps and the end, flat, float64.
        predictions (`list[torch.Tensor]`): N, x_0.
    """

    def __init__(self, scheduler: Any, max_elements: int = MAX_ELEMENTS):
        super().__init__(scheduler, max_elements)
        self.timesteps: list[Any] = []
        self.alphas: list[float] = []
        self.sigmas: list[float] = []
        self.samples: list[torch.Tensor] = []
        self.predictions: list[torch.Tensor] = []

    def _before(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor):
        t = timestep.flatten()[0].item() if isinstance(timestep, torch.Tensor) else timestep
        if self.timesteps and t >= self.timesteps[-1]:
            raise ValueError(f"`timestep` {t} comes after {self.timesteps[-1]}: a recorder takes one loop.")
        row, *_ = self.scheduler._row(t, 0.0, sample)
        prediction = self.scheduler.transition(model_output, timestep, sample, eta=0.0).pred_original_sample
        if not self.timesteps:
            self.alphas, self.sigmas, self.samples = [row.alpha_t], [row.sigma_t], [self._thinned(sample)]
        self.timesteps.append(t)
        self.alphas.append(row.alpha_s)
        self.sigmas.append(row.sigma_s)
        self.predictions.append(self._thinned(prediction))

    def _after(self, prev_sample: torch.Tensor):
        self.samples.append(self._thinned(prev_sample))


def fit_timesteps(teacher: TrajectoryRecorder, num_inference_steps: int) -> list[int]:
    """
    Places of the N timesteps among the teacher's, by dynamic programming: those for which the root mean square errors
    of DDIM's steps between them, each from the teacher's sample to the teacher's sample, have the smallest sum.

    Raises:
        ValueError: If N is more than the teacher's number of steps.
    """
    M = len(teacher.timesteps)
    check_integer("num_inference_steps", num_inference_steps, 1, M)
    alphas, sigmas = np.array(teacher.alphas), np.array(teacher.sigmas)
    samples, predictions = torch.stack(teacher.samples), torch.stack(teacher.predictions)
    of_samples, of_both = (samples @ samples.T).numpy(), (predictions @ samples.T).numpy()

    # a step from i to j lands at a x_i + b x_0(i), and costs the distance of that from x_j
    a = sigmas[None, :] / sigmas[:M, None]
    b = alphas[None, :] - a * alphas[:M, None]
    squares = of_samples.diagonal()
    squared = a**2 * squares[:M, None] + b**2 * predictions.square().sum(1).numpy()[:, None] + squares[None, :]
    squared += 2 * a * b * of_both.diagonal()[:, None] - 2 * a * of_samples[:M] - 2 * b * of_both
    costs = np.where(np.arange(M)[:, None] < np.arange(M + 1), np.sqrt(squared.clip(0)), np.inf)

    # the noise x_T counts as the sample of the first place, wherever that is
    cost = np.sqrt((squares[0] + squares - 2 * of_samples[0]).clip(0))[:M]
    before = []  # for each number of steps and place, the place before
    for _ in range(num_inference_steps):
        totals = cost[:, None] + costs
        before.append(totals.argmin(0))
        cost = totals.min(0)[:M]
    places = [M]
    for previous in reversed(before):
        places.append(int(previous[places[-1]]))
    return places[:0:-1]


class WeightFitter(_Watcher):
    """
    Fits the weights of the loop that is run while it is open, on a grid of the teacher's timesteps and from the noise
    that the teacher started with.

    Args:
        scheduler: The one that the loop uses, made by `student_of`.
        teacher (`TrajectoryRecorder`): What was recorded.
        ridge (`float`, defaults to 0.001): How strongly the weights are drawn to those of the formula, relative.

    Attributes:
        error (`float`): Root mean square distance of the loop's end from that of the teacher.
        table (`FittedTable`): What was fitted.
    """

    def __init__(self, scheduler: Any, teacher: TrajectoryRecorder, ridge: float = RIDGES[0]):
        super().__init__(scheduler, teacher.max_elements)
        self.teacher, self.ridge, self.error = teacher, ridge, float("nan")
        self._weights: list[list[float]] = []

    @property
    def table(self) -> FittedTable:
        table: FittedTable
        (table,) = self.scheduler.config.fitted_tables.values()
        return {**table, "weights": self._weights}

    def _before(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor):
        i, timesteps = len(self._weights), self.scheduler.timesteps.tolist()
        if i == 0:
            self.scheduler._fitted_weights = [[] for _ in timesteps]  # not those in the config
        target = self.teacher.samples[
            self.teacher.timesteps.index(timesteps[i + 1]) if i + 1 < len(timesteps) else len(self.teacher.timesteps)
        ]
        weights = self.scheduler._fitted_weights

        def mean(*given: float) -> torch.Tensor:
            weights[i] = list(given)
            return self._thinned(self.scheduler.transition(model_output, timestep, sample, eta=0.0).mean)

        number = min(i, MAX_ORDER - 1)
        first_order = mean()
        if target.shape != first_order.shape:
            raise ValueError(
                f"`sample` has shape {tuple(sample.shape)}, which is not what the teacher was recorded with."
            )
        unit = np.eye(number).tolist()
        changes = [mean(*unit[k]) - first_order for k in range(number)]
        weights[i] = _least_squares(changes, target - first_order, self.ridge)
        self._weights.append(weights[i])

    def _after(self, prev_sample: torch.Tensor):
        self.error = _distance(self._thinned(prev_sample), self.teacher.samples[-1])


def _least_squares(changes: list[torch.Tensor], wanted: torch.Tensor, ridge: float) -> list[float]:
    """The weights of the changes that come nearest to what is wanted, drawn to those of the formula."""
    if not changes:
        return []
    columns, formula = torch.stack(changes), torch.tensor(FORMULA_WEIGHTS[len(changes)], dtype=torch.float64)
    gram = columns @ columns.T
    pull = ridge * gram.trace() / len(changes)
    if not pull > 0:  # nothing changes, or is not finite
        return formula.tolist()
    solution = torch.linalg.solve(gram + pull * torch.eye(len(changes)), columns @ wanted + pull * formula)
    return [round(weight, 6) for weight in solution.tolist()]


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


def teacher_of(scheduler: Any) -> Any:
    """
    The scheduler that a teacher is run with: order 3, without clipping or noise; on a grid that is even in angle, or,
    of a flow model, on its own.
    """
    grid = {"timestep_spacing": "angle"} if isinstance(scheduler, EtaDDIMScheduler) else {"use_fitted_sigmas": False}
    return _changed(scheduler, **grid, solver_order=3, fitted_tables=None)


def student_of(scheduler: Any, teacher: TrajectoryRecorder, places: Sequence[int]) -> Any:
    """A scheduler with the teacher's timesteps at these places, for a `WeightFitter`."""
    table: FittedTable = {
        "prediction_type": scheduler.config.get("prediction_type", "flow_prediction"),
        "timesteps": [teacher.timesteps[i] for i in places],
        "sigmas": [round(teacher.sigmas[i], 8) + 0.0 for i in (*places, -1)],
        "weights": [[] for _ in places],
    }
    return with_tables(scheduler, {str(len(places)): table})


def with_tables(scheduler: Any, tables: dict[str, FittedTable]) -> Any:
    """A scheduler that uses these tables, without clipping or noise."""
    is_discrete = isinstance(scheduler, EtaDDIMScheduler)
    use = {"timestep_spacing": "fitted"} if is_discrete else {"use_fitted_sigmas": True}
    return _changed(scheduler, **use, fitted_tables=tables)


def _first_order_of(scheduler: Any) -> tuple[Any, str]:
    """The scheduler without a history, on its own grid, and the name of that."""
    if not isinstance(scheduler, EtaDDIMScheduler):
        return _changed(scheduler, use_fitted_sigmas=False, solver_order=1, fitted_tables=None), "its own"
    own = scheduler.config.timestep_spacing
    own = "trailing" if own == "fitted" else own
    return _changed(scheduler, timestep_spacing=own, solver_order=1, fitted_tables=None), own


def _changed(scheduler: Any, **changes: Any) -> Any:
    # clipping makes a step that is not linear in its predictions
    clips = isinstance(scheduler, EtaDDIMScheduler)
    unconstrained = {"clip_sample": False, "thresholding": False} if clips else {"stochastic_sampling": False}
    return type(scheduler).from_config(scheduler.config, **unconstrained, eta=0.0, **changes)


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
    if not isinstance(scheduler, EtaDDIMScheduler | EtaFlowMatchScheduler):
        raise TypeError(
            f"`pipe` must hold a scheduler of this package, but holds a {type(scheduler).__name__}: set "
            "`pipe.scheduler = EtaDDIMScheduler.from_config(pipe.scheduler.config)` first, or EtaFlowMatchScheduler."
        )
    counts = sorted(set(num_inference_steps))
    check_integer("teacher_steps", teacher_steps, 2, scheduler.config.num_train_timesteps)
    check_integer("seeds", seeds, 1)
    if not counts:
        raise ValueError("`num_inference_steps` must hold at least one number of steps, but is empty.")
    for N in counts:
        check_integer("num_inference_steps", N, 1, teacher_steps)
    arguments, batch_size = _with_batch(pipe, seeds, arguments)

    # the teacher with both sets of seeds; for each N the fits, and with the held-out seeds order 1 and the best fit
    total = 2 * teacher_steps + sum((len(RIDGES) + 2) * N for N in counts)
    first_order, own = _first_order_of(scheduler)
    settings = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    megabytes = 2 * 2 * 8 * teacher_steps * max_elements / 2**20
    print(f"{total} steps of {batch_size} samples; at most {megabytes:.0f} MB to keep trajectories in")
    rows = []
    try:
        with tqdm(total=total, desc="Fitting", disable=None) as progress:

            def sample(watcher: Any, N: int, seed: int) -> Any:
                generator = torch.Generator().manual_seed(seed)
                watcher.on_step, pipe.scheduler = progress.update, watcher.scheduler
                with watcher:
                    pipe(num_inference_steps=N, generator=generator, **arguments)
                done = len(watcher.timesteps if isinstance(watcher, TrajectoryRecorder) else watcher.table["weights"])
                if done != N:
                    raise ValueError(f"The pipeline did {done} of {N} steps: a fit needs all of them.")
                return watcher

            teacher, held_out = (
                sample(TrajectoryRecorder(teacher_of(scheduler), max_elements), teacher_steps, seed)
                for seed in (FITTED_SEED, HELD_OUT_SEED)
            )
            tables: dict[str, FittedTable] = {}
            for N in counts:
                places = fit_timesteps(teacher, N)
                fits = [
                    sample(WeightFitter(student_of(scheduler, teacher, places), teacher, ridge), N, FITTED_SEED)
                    for ridge in RIDGES
                ]
                best = min(fits, key=lambda fit: fit.error)
                tables[str(N)] = best.table
                fitted = with_tables(scheduler, {str(N): best.table})
                ends = (
                    sample(TrajectoryRecorder(s, max_elements), N, HELD_OUT_SEED).samples[-1]
                    for s in (first_order, fitted)
                )
                rows.append((N, *(_distance(end, held_out.samples[-1]) for end in ends), best.error))
    finally:
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(**{"disable": False, **settings})
    print(f"Distance from {teacher_steps} steps of order 3, root mean square, by seeds that were not fitted to:")
    print(f"steps   order 1, {own:<9}   fitted   (by the fitted seeds)")
    for N, before, after, fitting in rows:
        print(f"{N:5d}   {before:18.4f}   {after:6.4f}   ({fitting:.4f})")
    kept = scheduler.config.fitted_tables or {}
    return with_tables(scheduler, {**kept, **tables})


def _with_batch(pipe: DiffusionPipeline, seeds: int, arguments: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The arguments of a call that makes a batch of about that many samples, and their exact number."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    for name in ("generator", "seed", "num_inference_steps"):
        if name in arguments:
            raise ValueError(f"`{name}` is set by the fit, but is given as {arguments[name]!r}.")
    if "output_type" in parameters:
        arguments = {"output_type": "latent", **arguments}
    lists = [arguments.get(name) for name in ("prompt", "class_labels")]
    rows = next((len(given) for given in lists if isinstance(given, list | torch.Tensor)), None)
    if "batch_size" in parameters:
        batch_size = arguments.get("batch_size", rows or seeds)
        return {**arguments, "batch_size": batch_size}, batch_size
    for name in BATCH_ARGUMENTS:
        if name in parameters:
            each = arguments.get(name, max(1, seeds // (rows or 1)))
            return {**arguments, name: each}, each * (rows or 1)
    return arguments, rows or 1


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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run it")
    args = parser.parse_args(argv)
    if not isinstance(args.arguments, dict):
        parser.error(f"--arguments must be a JSON dictionary, but is {args.arguments!r}")
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
        pipe.scheduler.save_pretrained(Path(args.pipeline) / "scheduler")
    print(f"The samplers are in {args.output or args.pipeline}")


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
