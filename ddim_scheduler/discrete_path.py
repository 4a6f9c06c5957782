# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The path of a model that was trained as a DDPM: alpha_t^2 + sigma_t^2 = 1, with the integers 0..T-1 as its places."""

import math
from typing import Any

import numpy as np
import torch

from .arithmetic import add, cast, computing_dtype, is_on_host, is_readable, times, to_device
from .fitted_tables import check_model
from .live_attributes import LiveAttributes, counted, values_of
from .noise_schedules import as_betas, betas_of, log_alphas_cumprod_of, log_of_alphas_cumprod
from .step_table import Row, StepTable
from .steps import EtaSteps
from .timestep_grids import as_timesteps, previous_timesteps
from .validation import check_eta, check_floating, check_integer, check_noise, check_number

FIXED = ("_get_variance", "previous_timestep")  # methods that a step does not call


class DiscretePath(LiveAttributes, EtaSteps):
    """
    A noise schedule, a grid of timesteps, and the table of the steps between them.

    `betas`, `alphas`, `alphas_cumprod`, `final_alpha_cumprod`, `timesteps` and `num_inference_steps` may be written:
    the last one written decides, and the others follow. The successor of a timestep is read from `timesteps`; only a
    written `num_inference_steps` N that is not their number means a stride of `num_train_timesteps // N`, as it does in
    diffusers.
    """

    _log_alphas_cumprod: np.ndarray  # of the T timesteps
    _levels: np.ndarray  # (3, T + 1): log alpha-bar, alpha and sigma, of the timesteps and of -1, the end
    _written_final: float | None  # log of a `final_alpha_cumprod` that somebody wrote
    _prev_timesteps: np.ndarray
    _table: StepTable
    betas: torch.Tensor
    alphas: torch.Tensor
    alphas_cumprod: torch.Tensor
    final_alpha_cumprod: torch.Tensor
    timesteps: torch.Tensor
    num_inference_steps: int | None
    _live_tensors = ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod", "timesteps")
    _live_numbers = ("num_inference_steps",)

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name in FIXED:
            if getattr(cls, name) is not getattr(DiscretePath, name):
                cls._refuse(name)

    @classmethod
    def _refuse(cls, name: str):
        raise TypeError(
            f"`{name}` of {cls.__name__} would change no step, which reads a table of all variances and successors: "
            "set `timesteps`, give `eta` or `variance_type`, or override `step`."
        )

    def __setattr__(self, name: str, value: Any):
        if name in FIXED:
            self._refuse(name)
        super().__setattr__(name, value)

    # ------------------------------------------------------------------------------- the noise schedule and the grid

    def _set_noise_schedule(self, log_alphas_cumprod: np.ndarray, **written: torch.Tensor):
        """Takes a noise schedule, which keeps the grid, and publishes it, but for the tensors that were `written`."""
        state, num_timesteps = self.__dict__, len(log_alphas_cumprod)
        former, timesteps = state.get("_levels", np.empty((3, 1)))[0], state.get("timesteps")
        final = self._written_final
        if final is None:
            final = 0.0 if self.config.set_alpha_to_one else log_alphas_cumprod[0]
        elif final < log_alphas_cumprod[0]:
            raise ValueError(
                f"`alphas_cumprod` must not begin above `final_alpha_cumprod` = {math.exp(final):.6g}, but do with "
                f"{math.exp(log_alphas_cumprod[0]):.6g}."
            )
        log = np.append(log_alphas_cumprod, final)  # timestep -1 is where the last step goes to
        levels = np.stack([log, np.exp(log / 2), np.sqrt(-np.expm1(log))])
        grid = as_timesteps(timesteps, num_timesteps) if self._has_grid else np.arange(num_timesteps)[::-1]
        check_model(self.config.fitted_tables, self.config.prediction_type, levels[2])

        # from here on nothing is refused
        self._log_alphas_cumprod, self._levels = log_alphas_cumprod, levels
        arrays = {}
        if not np.array_equal(log_alphas_cumprod, former[:-1]):  # else the tensors stay, which somebody may hold
            betas, alphas_cumprod = betas_of(log_alphas_cumprod), np.exp(log_alphas_cumprod)
            arrays = {"betas": betas, "alphas": 1 - betas, "alphas_cumprod": alphas_cumprod}
        if "final_alpha_cumprod" not in state or final != former[-1]:
            arrays["final_alpha_cumprod"] = np.exp(final)
        tensors = {name: self._tensor_like_former(name, array) for name, array in arrays.items()} | written
        self._publish(tensors, {name: values_of(tensor) for name, tensor in tensors.items()})
        if not self._has_grid:
            self._set_grid(grid, None)
        elif num_timesteps != len(former) - 1:
            self._set_grid(grid, self._table.tensor.device, timesteps)
        else:  # a stride stays as well
            self._table = self._table_of(levels, self._prev_timesteps, self._table.tensor.device)

    def _tensor_like_former(self, name: str, array: np.ndarray) -> torch.Tensor:
        """A public tensor of new values, where and in which dtype it was before; float32 on the host at first."""
        former = self.__dict__.get(name, torch.empty(0))
        return counted(torch.as_tensor(array).to(former.device, former.dtype))

    def _set_grid(self, grid: np.ndarray, device: str | torch.device | None, timesteps: torch.Tensor | None = None):
        """Publishes a grid, as the tensor `timesteps` if that was written, and fills the table."""
        grid = np.array(grid, np.int64, order="C")
        prev_timesteps = previous_timesteps(grid, len(self._log_alphas_cumprod))
        if timesteps is None:
            timesteps = counted(to_device(torch.from_numpy(grid), device))
        table = self._table_of(self._levels, prev_timesteps, device)
        # assigned together, so that a device that is not there changes nothing
        self._prev_timesteps, self._table = prev_timesteps, table
        self._begin_grid()
        self._publish({"timesteps": timesteps}, {"timesteps": grid.copy()})

    def _set_number(self, num_inference_steps: int | None):
        # a truth value beside the number, since a compiled step would be compiled anew for each number that it looks at
        self.__dict__.update(num_inference_steps=num_inference_steps, _has_grid=num_inference_steps is not None)

    @staticmethod
    def _table_of(levels: np.ndarray, prev_timesteps: np.ndarray, device: Any) -> StepTable:
        """Row t holds the step from t to the one before it."""
        log_t, alpha_t, sigma_t = levels[:, :-1]
        log_s, alpha_s, sigma_s = levels.take(prev_timesteps, axis=1, mode="wrap")
        log_ratio = log_t - log_s
        fresh_std = np.sqrt(-np.expm1(log_ratio))
        ratio = sigma_s / sigma_t
        std = ratio * fresh_std
        direction = np.exp(log_ratio / 2) * sigma_s * ratio  # alpha_t / alpha_s may be 0 / 0
        return StepTable(Row(alpha_t, sigma_t, alpha_s, sigma_s, std, direction, fresh_std), device)

    def _take_over(self, name: str, value: Any):
        if name == "timesteps":
            grid = as_timesteps(value, self._table.length)
            self._set_grid(grid, value.device, value)
            if not self._has_grid:
                self._set_number(len(grid))
        elif name == "num_inference_steps":
            num_timesteps, former = self.config.num_train_timesteps, self.__dict__[name]
            self._set_number(None if value is None else check_integer(name, value, 1, num_timesteps))
            if value == former:
                return
            grid = self._published["timesteps"]
            if value in (None, len(grid)):
                prev_timesteps = previous_timesteps(grid, self._table.length)
            else:
                prev_timesteps = np.maximum(np.arange(self._table.length) - num_timesteps // value, -1)
            table = self._table_of(self._levels, prev_timesteps, self._table.tensor.device)
            self._prev_timesteps, self._table = prev_timesteps, table
        elif name == "final_alpha_cumprod":
            check_number(name, float(value), math.exp(self._log_alphas_cumprod[0]) * (1 - 1e-6), 1.0)
            self._written_final = max(math.log(value), self._log_alphas_cumprod[0])
            self._set_noise_schedule(self._log_alphas_cumprod, final_alpha_cumprod=value)
        elif name == "alphas_cumprod":
            self._set_noise_schedule(log_of_alphas_cumprod(value), alphas_cumprod=value)
        else:
            betas = as_betas("betas", value) if name == "betas" else as_betas("1 - alphas", 1 - value.double())
            self._set_noise_schedule(log_alphas_cumprod_of(betas), **{name: value})

    def previous_timestep(self, timestep: int | torch.Tensor) -> int:
        """The timestep that a step from `timestep` goes to: the next lower one of the grid, -1 after the last."""
        self._follow()
        return int(self._prev_timesteps[self._check_timestep(timestep)])

    # --------------------------------------------------------------------------------------- the rows of a timestep

    def _row(self, timestep: int | torch.Tensor, eta: float | torch.Tensor, sample: torch.Tensor):
        self._check_timesteps_are_set()
        if not isinstance(eta, torch.Tensor):
            if type(eta) is not float or not 0.0 <= eta <= 1.0:
                eta = float(check_number("eta", eta, 0.0, 1.0))
            if is_on_host(timestep):
                return self._row_of(self._check_timestep(timestep)), eta, math.sqrt
        if not isinstance(timestep, torch.Tensor):
            t = timestep if torch.compiler.is_compiling() else self._check_timestep(timestep)
            timestep = torch.full((1,), t)
        timesteps = self._check_timesteps("timestep", timestep)
        row = self._table.rows(timesteps, sample, isinstance(eta, float) and eta == 0)
        if is_readable(timesteps):
            self._check_signal(timesteps.numpy())
        return row, check_eta(eta, sample, row.alpha_t.dtype) if isinstance(eta, torch.Tensor) else eta, torch.sqrt

    def _index_of(self, timestep: int | torch.Tensor) -> int | None:
        if not is_on_host(timestep):
            if isinstance(timestep, torch.Tensor) and timestep.numel() == 1:
                return None
            raise ValueError(f"`timestep` must be one of the grid for a step with a history, but is {timestep}.")
        places = np.flatnonzero(self._published["timesteps"] == self._check_timestep(timestep))
        return int(places[0]) if len(places) else -1

    def _row_of(self, t: int) -> Row:
        row = self._table.row(t)
        if row.alpha_t == 0:
            self._check_signal(np.array([t]))
        return row

    def _rows_around(self, timestep: int | torch.Tensor) -> tuple[Row, Row]:
        self._check_timesteps_are_set()
        for name in ("clip_sample", "thresholding"):
            if getattr(self.config, name):
                raise ValueError(
                    f"`{name}` is True, and a step that changes the predicted x_0 cannot be inverted; make the "
                    f"scheduler by `from_config(scheduler.config, {name}=False)`."
                )
        t, grid = self._check_timestep(timestep), sorted(self.timesteps.tolist())
        if t not in grid[:-1]:
            raise ValueError(f"`timestep` must be one of the grid below {grid[-1]}, but is {t}.")
        row, above = (self._table.row(k) for k in (t, grid[grid.index(t) + 1]))
        if above.alpha_t == 0:
            raise ValueError(f"`timestep` {t} has no midpoint step: there is no signal at the one above it.")
        return row, above

    def _check_timestep(self, timestep: int | torch.Tensor) -> int:
        t = timestep.tolist() if isinstance(timestep, torch.Tensor) else timestep
        if type(t) is int and 0 <= t < self._table.length:
            return t
        while isinstance(t, list) and len(t) == 1:  # a tensor of one element
            t = t[0]
        return check_integer("timestep", t, 0, self._table.length - 1)

    def _check_timesteps(self, name: str, timesteps: torch.Tensor) -> torch.Tensor:
        """Timesteps as int64, shape (n,). Their range is checked where that makes nobody wait."""
        if not isinstance(timesteps, torch.Tensor):
            raise TypeError(f"`{name}` must be a tensor of integers, but is {timesteps!r}.")
        if timesteps.is_floating_point() or timesteps.dtype == torch.bool or timesteps.is_complex():
            raise TypeError(f"`{name}` must be integers, but have dtype {timesteps.dtype}.")
        timesteps = timesteps.reshape(-1).long()
        if is_readable(timesteps):
            values, largest = timesteps.numpy(), self._table.length - 1
            if len(values) and values.view(np.uint64).max() > largest:  # a negative one is a large one there
                bad = values[(values < 0) | (values > largest)].tolist()
                raise ValueError(f"`{name}` must be in 0..{largest}, but hold {bad}.")
        return timesteps

    def _check_signal(self, timesteps: np.ndarray):
        """Refuses epsilon prediction where alpha_t is 0 (zero terminal SNR)."""
        if self._levels[1][-2] > 0 or self.config.prediction_type != "epsilon":  # that of T-1, the smallest
            return
        without_signal = timesteps[self._levels[1][timesteps] == 0]
        if len(without_signal):
            raise ValueError(
                f"`prediction_type` 'epsilon' tells nothing about x_0 at timestep {without_signal[0]}, where there is "
                "no signal; use 'v_prediction', 'sample', or lower timesteps (`timestep_spacing='leading'`)."
            )

    # ------------------------------------------------------------------------------------------------------ training

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """
        x_t = alpha_t x_0 + sigma_t eps, in float32 at least and returned in the dtype of `original_samples`.

        Args:
            original_samples (`torch.Tensor` of shape `(B, ...)`): x_0.
            noise (`torch.Tensor` of the same shape): eps.
            timesteps (`torch.Tensor` of B integers): t, in 0..T-1. Each of the three may have 1 instead of B.

        A written `alphas_cumprod` that requires a gradient gets it from here and from `get_velocity`, none from `step`.

        Raises:
            ValueError, TypeError: If shapes do not fit, or timesteps are out of range or no integers.
        """
        alpha_t, sigma_t, dtype = self._path("original_samples", original_samples, noise, timesteps)
        noisy = add(times(cast(original_samples, dtype), alpha_t), sigma_t, cast(noise, dtype))
        return cast(noisy, original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """
        v = alpha_t eps - sigma_t x_0 (https://arxiv.org/abs/2202.00512), the target of `v_prediction`.

        Args:
            sample (`torch.Tensor` of shape `(B, ...)`): x_0.
            noise (`torch.Tensor` of the same shape): eps.
            timesteps (`torch.Tensor` of B integers): t, in 0..T-1. Each of the three may have 1 instead of B.

        Raises:
            ValueError, TypeError: If shapes do not fit, or timesteps are out of range or no integers.
        """
        alpha_t, sigma_t, dtype = self._path("sample", sample, noise, timesteps)
        velocity = add(times(cast(noise, dtype), alpha_t), -sigma_t, cast(sample, dtype))
        return cast(velocity, sample.dtype)

    def _path(self, name: str, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor):
        """alpha_t and sigma_t, shaped for the sample, and the dtype to compute in."""
        self._follow()
        check_floating(name, sample)
        timesteps = self._check_timesteps("timesteps", timesteps)
        check_noise(noise, len(timesteps), name, sample)
        dtype = computing_dtype(sample)
        if (learned := self.__dict__["alphas_cumprod"]).requires_grad:
            bars = learned[timesteps.to(learned.device)].to(sample.device, dtype).view(-1, *(1,) * (sample.ndim - 1))
            return bars.sqrt(), (1 - bars).sqrt(), dtype
        return *self._table.path(timesteps, sample, dtype), dtype

    def _get_variance(self, timestep: int, prev_timestep: int | None = None) -> torch.Tensor:
        """Square of eq. (16) at eta = 1 for any two timesteps, or to the successor; a negative one is the final one."""
        self._follow()
        if prev_timestep is None:
            prev_timestep = self.previous_timestep(timestep)
        log_t, log_s = (self._levels[0][max(int(t), -1)] for t in (timestep, prev_timestep))
        variance = abs(np.expm1(log_s) / np.expm1(log_t) * np.expm1(log_t - log_s))  # 0 at the end, not -0
        return torch.tensor(variance, dtype=torch.float32)

    def __len__(self) -> int:
        return self.config.num_train_timesteps
