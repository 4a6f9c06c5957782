# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The coefficients of all steps of a schedule, in float64, on the host and on a device."""

from typing import Any, NamedTuple

import numpy as np
import torch

from .arithmetic import to_device


class Row(NamedTuple):
    """Coefficients of the step t -> s: floats, or arrays or tensors that hold those of several steps."""

    alpha_t: Any
    sigma_t: Any
    alpha_s: Any
    sigma_s: Any
    std: Any = None  # eq. (16) at eta = 1
    direction: Any = None  # sqrt(sigma_s^2 - std^2) at eta = 1, without the cancellation
    fresh_std: Any = None  # std of x_t given x_s: the sigma-hat of the paper's section 5.1


class StepTable:
    """The rows of all steps, in float64, on the host and on a device. It never changes: a new grid has a new one."""

    def __init__(self, rows: Row, device: str | torch.device | None):
        self.array = np.array(rows)  # (7, T)
        self.tensor = to_device(torch.from_numpy(self.array), device)
        # for training, which asks for many rows at a time
        self.path32 = to_device(torch.from_numpy(self.array[:2].astype(np.float32)), device)
        self.length = self.array.shape[1]

    def row(self, index: int) -> Row:
        """A row of floats."""
        return Row(*self.array[:, index].tolist())

    def rows(self, indices: torch.Tensor, sample: torch.Tensor, is_deterministic: bool = False) -> Row:
        """
        Rows as tensors of shape (n, 1, ...) with the sample's dimensions, on its device; without what eta = 0 does not
        need, if `is_deterministic`.
        """
        batch_size = sample.shape[:1].numel()
        if len(indices) not in (1, batch_size):
            raise ValueError(
                f"`timestep` must hold one timestep or one for each of the {batch_size} samples, but holds "
                f"{len(indices)}."
            )
        columns = self._on(sample.device)
        return Row(*self._select(columns[:4] if is_deterministic else columns, indices, sample))

    def path(
        self, indices: torch.Tensor, sample: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha_t and sigma_t alone, as `rows` gives them, in a dtype."""
        if dtype == torch.float32 and self.path32.device == sample.device:
            path = self.path32
        else:
            path = self._on(sample.device)[:2].to(dtype)
        alpha_t, sigma_t = self._select(path, indices, sample)
        return alpha_t, sigma_t

    def _on(self, device: torch.device) -> torch.Tensor:
        return self.tensor if self.tensor.device == device else to_device(torch.from_numpy(self.array), device)

    @staticmethod
    def _select(columns: torch.Tensor, indices: torch.Tensor, sample: torch.Tensor) -> list[torch.Tensor]:
        indices = to_device(indices, sample.device).expand(len(columns), -1)
        selected = columns.gather(1, indices)  # of the ways to select columns the fastest
        return [*selected.view(len(columns), -1, *(1,) * (sample.ndim - 1)).unbind(0)]
