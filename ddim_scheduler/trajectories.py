# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
The parts of a fit, for a loop of one's own: trajectories are recorded (`TrajectoryRecorder`), a grid is chosen from
their timesteps (`fit_timesteps`), and the weights of its steps are found by walking it (`WeightFitter`).

"Fit" means here that both come from the model, by running it; nothing is trained. `fitting.py` does it with pipelines.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .fitted_tables import FittedTable
from .multistep import FORMULA_WEIGHTS, MAX_ORDER
from .scheduling_ddim import EtaDDIMScheduler
from .validation import check_integer, check_number

MAX_ELEMENTS = 2**18
# How strongly the weights are drawn to those of the formula: the smaller ridge serves few steps, the larger one many,
# whose predictions are nearly the same. And the power of the errors whose sum the grid makes small.
CANDIDATES = ((1.0, 1e-3), (1.0, 1e-1), (2.0, 1e-1))  # power, ridge


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


def fit_timesteps(teacher: TrajectoryRecorder, num_inference_steps: int, power: float = 1.0) -> list[int]:
    """
    Places of the N timesteps among the teacher's, by dynamic programming: those for which the root mean square errors
    of DDIM's steps between them, each from the teacher's sample to the teacher's sample, have the smallest sum.

    Args:
        teacher (`TrajectoryRecorder`): What was recorded.
        num_inference_steps (`int`): N.
        power (`float`, defaults to 1.0): The sum is that of the errors' powers; positive.

    Raises:
        ValueError: If N is more than the teacher's number of steps, or its trajectories are not finite.
    """
    check_number("power", power, 0.0, open_interval=True)
    M = len(teacher.timesteps)
    check_integer("num_inference_steps", num_inference_steps, 1, M)
    alphas, sigmas = np.array(teacher.alphas), np.array(teacher.sigmas)
    samples, predictions = torch.stack(teacher.samples), torch.stack(teacher.predictions)
    of_samples, of_both = (samples @ samples.T).numpy(), (predictions @ samples.T).numpy()

    if not (np.isfinite(of_samples).all() and np.isfinite(of_both).all()):
        raise ValueError("The `teacher` has trajectories that are not finite: nothing can be fitted to them.")

    # a step from i to j lands at a x_i + b x_0(i), and costs the distance of that from x_j
    a = sigmas[None, :] / np.where(sigmas > 0, sigmas, 1.0)[:M, None]
    b = alphas[None, :] - a * alphas[:M, None]
    squares = of_samples.diagonal()
    squared = a**2 * squares[:M, None] + b**2 * predictions.square().sum(1).numpy()[:, None] + squares[None, :]
    squared += 2 * a * b * of_both.diagonal()[:, None] - 2 * a * of_samples[:M] - 2 * b * of_both
    costs = np.where(np.arange(M)[:, None] < np.arange(M + 1), squared.clip(0) ** (power / 2), np.inf)

    # the noise x_T counts as the sample of the first place, wherever that is
    cost = ((squares[0] + squares - 2 * of_samples[0]).clip(0) ** (power / 2))[:M]
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

    def __init__(self, scheduler: Any, teacher: TrajectoryRecorder, ridge: float = 1e-3):
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
        self.error = distance(self._thinned(prev_sample), self.teacher.samples[-1])


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


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


def teacher_of(scheduler: Any) -> Any:
    """
    The scheduler that a teacher is run with: order 3, without clipping or noise; on a grid that is even in angle, or,
    of a flow model, on its own.
    """
    grid = {"timestep_spacing": "angle"} if isinstance(scheduler, EtaDDIMScheduler) else {"use_fitted_sigmas": False}
    return changed(scheduler, **grid, solver_order=3, fitted_tables=None)


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
    return changed(scheduler, **use, fitted_tables=tables)


def changed(scheduler: Any, **changes: Any) -> Any:
    """A scheduler with other settings, without clipping or noise."""
    # clipping makes a step that is not linear in its predictions
    clips = isinstance(scheduler, EtaDDIMScheduler)
    unconstrained = {"clip_sample": False, "thresholding": False} if clips else {"stochastic_sampling": False}
    return type(scheduler).from_config(scheduler.config, **unconstrained, eta=0.0, **changes)


def fit_table(
    scheduler: Any,
    num_inference_steps: int,
    teacher: TrajectoryRecorder,
    held_out: TrajectoryRecorder,
    loop: Callable[[Any, int, bool], Any],
) -> tuple[FittedTable, float, float]:
    """
    Fits a sampler of N steps in a few ways, and takes the one that comes nearest to the held-out teacher.

    Args:
        scheduler: The one that the samplers are for.
        num_inference_steps (`int`): N.
        teacher (`TrajectoryRecorder`): What is fitted to.
        held_out (`TrajectoryRecorder`): The same from other noise.
        loop (`Callable`):
            `loop(watcher, N, is_held_out)` runs N steps with `watcher.scheduler`, inside `with watcher`, from the noise
            of the one teacher or the other.

    Returns:
        `tuple`: the table, and its root mean square distances from the ends of the held-out teacher and of the teacher.
    """
    fits = []
    for power, ridge in CANDIDATES:
        places = fit_timesteps(teacher, num_inference_steps, power)
        fitter = WeightFitter(student_of(scheduler, teacher, places), teacher, ridge)
        loop(fitter, num_inference_steps, False)
        student = with_tables(scheduler, {str(num_inference_steps): fitter.table})
        recorder = TrajectoryRecorder(student, teacher.max_elements)
        loop(recorder, num_inference_steps, True)
        fits.append((fitter.table, distance(recorder.samples[-1], held_out.samples[-1]), fitter.error))
    return min(fits, key=lambda fit: fit[1])
