# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Linear multistep: a step that goes towards an x_0 extrapolated from the predictions of the steps before it.

A step at fixed x_t is linear in x_0: `x_s = (direction / sigma_t) x_t + gain x_0` with `gain = alpha_s - direction
alpha_t / sigma_t`, for every eta. One of higher order puts `x_0 + sum_k w_k (x_0(-k) - x_0)` in the place of x_0, where
x_0(-k) was predicted k steps before. The weights are those of Adams-Bashforth on an even grid, as in iPNDM
(https://arxiv.org/abs/2202.09778), or fitted to the model (`fitted_tables.py`).
"""

from collections.abc import Sequence
from typing import Any

import torch

from .arithmetic import to_device

MAX_ORDER = 3
FORMULA_WEIGHTS: tuple[tuple[float, ...], ...] = ((), (-1 / 2,), (-16 / 12, 5 / 12))  # of order 1, 2, 3


class History:
    """The predictions of x_0 in one loop, the newest first, and the place on the grid where the next step begins."""

    def __init__(self, begin: int = 0):
        self.begin = self.next = begin
        self.predictions: tuple[torch.Tensor, ...] = ()


class Multistep:
    """The history of a loop: a part of `EtaSteps`. A scheduler of order 1 has none, and changes nothing in a step."""

    config: Any
    timesteps: torch.Tensor
    _history: History
    _fitted_weights: Sequence[Sequence[float]] | None = None  # of each step of the grid, if it is a fitted one
    _weight_rows: torch.Tensor | None = None  # the same for a compiled step, which would be another one for each number

    @property
    def _is_multistep(self) -> bool:
        return self._fitted_weights is not None or self.config.solver_order > 1

    def _begin_grid(self, weights: Sequence[Sequence[float]] | None = None):
        """Forgets the former loop. The weights are those of the steps of the new grid, if they are fitted."""
        rows = None
        if weights is not None:
            padded = [[*row, 0.0, 0.0][: MAX_ORDER - 1] for row in weights]
            rows = to_device(torch.tensor(padded, dtype=torch.float64), self.timesteps.device)
        self.__dict__.update(_history=History(), _fitted_weights=weights, _weight_rows=rows)

    def _past(self, timestep: Any, x_0: torch.Tensor) -> list[tuple[Any, torch.Tensor]]:
        """The predictions before x_0 in the loop that this call goes on with, and their weights."""
        history, index = self._history, self._index_of(timestep)
        if index is None:  # it is on an accelerator, and reading it would make the host wait
            index = history.next
        elif index != history.next:
            raise ValueError(
                f"`timestep` {timestep} is out of order. A step with a history goes on where the last one ended, here "
                f"at {self.timesteps[history.next]}; `set_timesteps` begins a new loop, `set_begin_index(i)` one from "
                "the i-th timestep on, and every loop needs a scheduler of its own."
            )
        predictions = history.predictions
        if predictions and (predictions[0].shape != x_0.shape or predictions[0].device != x_0.device):
            raise ValueError(
                f"`sample` has shape {tuple(x_0.shape)} on {x_0.device}, but those of the steps before it in this loop "
                f"had {tuple(predictions[0].shape)} on {predictions[0].device}; `set_timesteps` begins a new loop."
            )
        number: int = len(predictions)
        weights: Any
        if self._fitted_weights is None:
            weights = FORMULA_WEIGHTS[min(self.config.solver_order - 1, number)]
        elif history.begin > 0 and number < MAX_ORDER - 1:  # the first steps of a loop that begins later
            weights = FORMULA_WEIGHTS[number]
        elif torch.compiler.is_compiling():
            weights = self._weight_rows[index].unbind()  # type: ignore[index]
        else:
            weights = self._fitted_weights[index]
        return list(zip(weights, predictions, strict=False))

    def _remember(self, x_0: torch.Tensor):
        """Ends a step: the next one begins at the next place, or a new loop if that was the last."""
        history = self._history
        history.next += 1
        history.predictions = (x_0, *history.predictions[: MAX_ORDER - 2])
        if history.next == len(self.timesteps):
            self.__dict__["_history"] = History(history.begin)

    def _index_of(self, timestep: Any) -> int | None:
        """The place of a timestep on the grid, -1 if it is not of it; None if the host must wait to know."""
        raise NotImplementedError
