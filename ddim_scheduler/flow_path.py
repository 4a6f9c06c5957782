# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The path of a flow matching model: alpha = 1 - sigma, with noise levels sigma in [0, 1] as its places."""

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch

from .arithmetic import add, cast, computing_dtype, is_on_host, is_readable, times, to_device
from .live_attributes import LiveAttributes, counted, values_of
from .step_table import Row, StepTable
from .steps import EtaSteps
from .validation import check_eta, check_floating, check_noise, check_number

TIMESTEP_DTYPES = (torch.float32, torch.float64)
TOLERANCE = 1e-6  # of a level, and of a timestep as a part of num_train_timesteps: float32 rounds them


class Tokens(NamedTuple):
    """Timesteps of the tokens of each sample, (B, L): in the place of a timestep."""

    timesteps: torch.Tensor


def flow_row(sigma_t: torch.Tensor, sigma_s: torch.Tensor, is_exploding: bool, is_renoised: bool) -> Row:
    """
    The coefficients of the steps from noise levels sigma_t to sigma_s <= sigma_t.

    With alpha = 1 - sigma, and with alpha = 1 as well, sigma_t alpha_s - sigma_s alpha_t is sigma_t - sigma_s: the
    variance of x_t given x_s has this as a factor and loses nothing to cancellation. No coefficient is infinite, at
    sigma_t = 1 either. A step that stays where it is has a std of 0.

    Args:
        sigma_t, sigma_s (`torch.Tensor` of one shape): Noise levels; in [0, 1] unless `is_exploding`.
        is_exploding (`bool`): Whether alpha is 1 everywhere (variance exploding) instead of 1 - sigma.
        is_renoised (`bool`): Whether eta = 1 means `stochastic_sampling`, x_s = alpha_s x_0 + sigma_s z.
    """
    alpha_t, alpha_s = (torch.ones_like(s) if is_exploding else 1 - s for s in (sigma_t, sigma_s))
    divisor_t, divisor_s = torch.where(sigma_t > 0, sigma_t, 1.0), torch.where(alpha_s > 0, alpha_s, 1.0)
    fresh_std = ((sigma_t - sigma_s) * (sigma_t * alpha_s + sigma_s * alpha_t)).sqrt() / divisor_s
    if is_renoised:
        std, direction = sigma_s, torch.zeros_like(sigma_s)
    else:
        std = sigma_s / divisor_t * fresh_std
        direction = torch.where(sigma_t > sigma_s, sigma_s / divisor_t * sigma_s * alpha_t / divisor_s, sigma_s)
    return Row(alpha_t, sigma_t, alpha_s, sigma_s, std, direction, fresh_std)


class FlowPath(LiveAttributes, EtaSteps):
    """
    A grid of timesteps with their noise levels, and the table of the steps between them.

    `sigmas` and `timesteps` may be written. Where one that is written has another length, the other follows by
    t = sigma `num_train_timesteps`.
    """

    _levels: np.ndarray  # the noise levels of the grid in falling order, and the one that the last step goes to
    _table: StepTable
    _slopes: list[float]  # what x_s = x_t + slope u has in each step at eta = 0
    _index_of_timestep: dict[float, int]
    _prediction_type = "flow_prediction"  # in the place of the config's
    num_inference_steps: int | None
    sigmas: torch.Tensor
    timesteps: torch.Tensor
    _live_tensors = ("sigmas", "timesteps")
    _live_numbers = ("num_inference_steps",)

    # --------------------------------------------------------------------------------------------------------- the grid

    def _set_grid(
        self, sigmas: torch.Tensor, timesteps: torch.Tensor, num_inference_steps: int | None, device: Any = None
    ):
        """
        Publishes a grid and fills the table, or raises and changes nothing.

        Args:
            sigmas (`torch.Tensor` of N + 1 values): As diffusers has them; those of the training are N, and 0 follows.
            timesteps (`torch.Tensor` of N values): What each step is called by.
            num_inference_steps (`int`, *optional*): N, or `None` for the levels of the training.
            device (`str` or `torch.device`, *optional*): Where to put them and the table; where they are if not given.
        """
        config, values = self.config, {"sigmas": values_of(sigmas), "timesteps": values_of(timesteps)}
        is_inverted = config.invert_sigmas and num_inference_steps is not None
        levels, grid = self._in_denoising_order(values["sigmas"]), self._in_denoising_order(values["timesteps"])
        if is_inverted:
            levels, grid = 1 - levels, -grid
        if len(levels) == len(grid):
            levels = np.append(levels, 0.0)
        is_exploding = (getattr(config, "sigma_max", None) or 0) > 1  # as diffusers asks
        highest = math.inf if is_exploding else 1.0
        self._check_grid(levels, grid, values, highest)
        levels = levels.clip(0.0, highest)  # float32 may have rounded past the ends

        sigma = torch.from_numpy(levels)
        row = flow_row(sigma[:-1], sigma[1:], is_exploding, config.stochastic_sampling)
        sigmas, timesteps = to_device(sigmas, device), to_device(timesteps, device)
        table = StepTable(Row(*(column.numpy() for column in row)), timesteps.device)
        slopes = np.diff(levels)
        if not np.array_equal(levels, self.__dict__.get("_levels", ())):  # a look at the config leaves a loop alone
            self._begin_grid()
        # assigned together, so that a device that is not there changes nothing
        self.__dict__.update(
            _levels=levels,
            _table=table,
            _slopes=(-slopes if is_inverted else slopes).tolist(),
            _index_of_timestep={t: i for i, t in enumerate((-grid if is_inverted else grid).tolist())},
            _prediction_type="epsilon" if is_exploding else f"{'inverted_' if is_inverted else ''}flow_prediction",
            num_inference_steps=num_inference_steps,
            _has_grid=num_inference_steps is not None,
        )
        self._publish({"sigmas": counted(sigmas), "timesteps": counted(timesteps)}, values)

    @staticmethod
    def _in_denoising_order(values: Any) -> Any:
        """An array or a tensor that is published, or the reverse: an inverse scheduler has it the other way round."""
        return values

    @staticmethod
    def _check_grid(levels: np.ndarray, grid: np.ndarray, values: dict[str, np.ndarray], highest: float):
        if len(levels) != len(grid) + 1 or len(grid) == 0:
            raise ValueError(
                f"`sigmas` must be one more than the timesteps, at least two, but are {len(levels)} for {len(grid)}."
            )
        # the last step may end where it begins (0, or at a `sigma_min`); NaN makes every comparison false
        is_falling = (np.diff(levels[:-1]) < 0).all() and levels[-1] <= levels[-2] and (np.diff(grid) < 0).all()
        if not is_falling or not np.isfinite(levels).all():
            raise ValueError(
                "The noise levels and the timesteps of a grid must be finite and strictly decreasing, in the order of "
                f"denoising, but `sigmas` are {_shown(values['sigmas'])} and `timesteps` {_shown(values['timesteps'])}."
            )
        if levels[-1] < -TOLERANCE or levels[0] > highest + TOLERANCE:
            hint = "" if highest > 1 else " unless the config has a `sigma_max` above 1 (variance exploding)"
            raise ValueError(f"`sigmas` must be in [0, {highest:g}]{hint}, but are {_shown(values['sigmas'])}.")

    def _as_live(self, name: str, value: Any) -> torch.Tensor:
        tensor = super()._as_live(name, value)
        if tensor.ndim != 1:
            raise TypeError(f"`{name}` must be a tensor of one dimension, but is {value!r}.")
        return tensor if tensor.dtype in TIMESTEP_DTYPES else tensor.float()  # of which a step takes its timestep

    def _take_over(self, name: str, value: Any):
        sigmas, timesteps, N = (self.__dict__[key] for key in (*self._live_tensors, *self._live_numbers))
        T = self.config.num_train_timesteps
        if name == "num_inference_steps":
            if value != N:
                raise ValueError(f"`num_inference_steps` is {N}, the number of timesteps: write them, not {value!r}.")
            return
        if name == "sigmas":
            sigmas = value
            if len(sigmas) != len(timesteps) + 1:
                timesteps = self._in_denoising_order(self._in_denoising_order(sigmas)[:-1]) * T
        elif name == "timesteps":
            timesteps = value
            if len(sigmas) != len(timesteps) + 1:
                end = timesteps.new_ones(1) if self.config.invert_sigmas else timesteps.new_zeros(1)
                sigmas = self._in_denoising_order(torch.cat([self._in_denoising_order(timesteps) / T, end]))
        written = name in self._live_tensors
        self._set_grid(sigmas, timesteps, len(timesteps) if written or N is not None else None)

    def previous_timestep(self, timestep: float | torch.Tensor) -> float:
        """The timestep that a step from `timestep` goes to; after the last one, that of the level where it ends."""
        self._follow()
        index = self._host_index(timestep) + 1
        names = self._in_denoising_order(self._published["timesteps"])
        if index < len(names):
            return float(names[index])
        end = 1 - self._levels[-1] if self.config.invert_sigmas else self._levels[-1]
        return float(end * self.config.num_train_timesteps)

    # --------------------------------------------------------------------------------------- the rows of a timestep

    def _row(self, timestep: Any, eta: float | torch.Tensor, sample: torch.Tensor):
        self._check_timesteps_are_set()
        if not isinstance(eta, torch.Tensor):
            if type(eta) is not float or not 0.0 <= eta <= 1.0:
                eta = float(check_number("eta", eta, 0.0, 1.0))
            index = self._index_at_hand(timestep)
            if index is not None:
                return self._table.row(index), eta, math.sqrt
        if isinstance(timestep, Tokens):
            row = self._row_of_tokens(timestep.timesteps, sample)
        else:
            indices = self._indices("timestep", timestep)
            row = self._table.rows(indices, sample, isinstance(eta, float) and eta == 0)
        return row, check_eta(eta, sample, row.alpha_t.dtype) if isinstance(eta, torch.Tensor) else eta, torch.sqrt

    def _row_of_tokens(self, timesteps: torch.Tensor, sample: torch.Tensor) -> Row:
        """Each token goes from its own level t / T to the next lower one of the grid, or stays at 0."""
        if self.config.invert_sigmas:
            raise ValueError("`per_token_timesteps` have no meaning for a scheduler with `invert_sigmas`.")
        sizes = zip(timesteps.shape, sample.shape, strict=False)
        if timesteps.ndim != 2 or sample.ndim < 3 or any(size not in (1, full) for size, full in sizes):
            raise ValueError(
                f"`per_token_timesteps` must be of shape (B, tokens) for a sample {tuple(sample.shape)}, but are of "
                f"{tuple(timesteps.shape)}."
            )
        dtype = torch.float32 if sample.device.type == "mps" else torch.float64
        # as in diffusers: in float32, and a level that is lower by less than 1e-6 is the same one
        sigma_t = timesteps.to(sample.device, torch.float32) / self.config.num_train_timesteps
        if is_readable(sigma_t):
            values, highest = sigma_t.numpy(), max(1.0, self._levels[0])
            if not ((values >= 0) & (values <= highest)).all():
                raise ValueError(
                    f"`per_token_timesteps` must be in [0, {highest * self.config.num_train_timesteps:g}], but hold "
                    f"{values.min() * self.config.num_train_timesteps:g} to "
                    f"{values.max() * self.config.num_train_timesteps:g}."
                )
        levels = to_device(self._in_denoising_order(self.__dict__["sigmas"]), sample.device)[:, None, None]
        sigma_s = torch.where(levels < sigma_t - 1e-6, levels, 0.0).amax(0)
        is_exploding = self._prediction_type == "epsilon"
        row = flow_row(sigma_t.to(dtype), sigma_s.to(dtype), is_exploding, self.config.stochastic_sampling)
        return Row(*(column.reshape(*column.shape, *(1,) * (sample.ndim - 2)) for column in row))

    def _rows_around(self, timestep: float | torch.Tensor) -> tuple[Row, Row]:
        self._check_timesteps_are_set()
        index = self._host_index(timestep)
        if index == 0:
            raise ValueError(f"`timestep` must be one of the grid after its first, but is {timestep}.")
        row, above = self._table.row(index), self._table.row(index - 1)
        if above.alpha_t == 0:
            raise ValueError(f"`timestep` {timestep} has no midpoint step: there is no signal at the one above it.")
        return row, above

    def _index_at_hand(self, timestep: Any) -> int | None:
        """The index of one timestep, or None where finding it makes the host wait, or for several."""
        if isinstance(timestep, Tokens):
            return None
        if is_on_host(timestep):
            return self._host_index(timestep)
        if not isinstance(timestep, torch.Tensor) or torch.compiler.is_compiling():
            return None
        base: Any = timestep._base
        grid = self.__dict__["timesteps"]
        if (
            base is grid  # an element that a loop over `timesteps` gave: its place in memory is enough
            and timestep.numel() == 1
            and timestep.dtype == grid.dtype
            and grid.is_contiguous()
        ):
            index = timestep.storage_offset() - grid.storage_offset()
            return int(self._in_denoising_order(np.arange(len(grid)))[index])
        return None

    def _index_of(self, timestep: Any) -> int | None:
        if isinstance(timestep, Tokens):
            raise ValueError("`per_token_timesteps` must be left out for a step with a history.")
        if isinstance(timestep, torch.Tensor) and timestep.numel() != 1:
            raise ValueError(f"`timestep` must be one of the grid for a step with a history, but is {timestep}.")
        return self._index_at_hand(timestep)

    def _host_index(self, timestep: Any) -> int:
        """The index of one timestep: the exact one first, else the nearest within the tolerance."""
        t = timestep
        if isinstance(t, torch.Tensor):
            if t.dtype not in TIMESTEP_DTYPES or t.numel() != 1:
                raise ValueError(
                    f"`timestep` must be one of `scheduler.timesteps`, float32 or float64, but is {timestep!r}."
                )
            t = (t.reshape(()) if t.ndim else t).tolist()
        elif not isinstance(t, float | np.float32 | np.float64):
            raise ValueError(f"`timestep` must be one of `scheduler.timesteps`, not an index, but is {timestep!r}.")
        index = self._index_of_timestep.get(t)
        return int(self._nearest("timestep", np.array([t]))[0]) if index is None else index

    def _nearest(self, name: str, timesteps: np.ndarray) -> np.ndarray:
        """The index of the nearest of the grid for each timestep, or an error if that is not within the tolerance."""
        grid, last = self._in_denoising_order(self._published["timesteps"]), len(self._published["timesteps"]) - 1
        is_rising = grid[0] < grid[-1]  # with inverted levels
        rising = grid if is_rising else grid[::-1]
        above = rising.searchsorted(timesteps).clip(0, last)
        below = (above - 1).clip(0)
        places = np.where(timesteps - rising[below] < rising[above] - timesteps, below, above)
        is_near = np.abs(rising[places] - timesteps) <= TOLERANCE * self.config.num_train_timesteps
        if not is_near.all():
            raise ValueError(
                f"`{name}` must be one of `scheduler.timesteps`, {_shown(self._published['timesteps'])}, but is "
                f"{', '.join(map(str, timesteps[~is_near][:8]))}."
            )
        return places if is_rising else last - places

    def _indices(self, name: str, timesteps: Any) -> torch.Tensor:
        """Indices of one timestep or several, of shape (n,). They are checked where that makes nobody wait."""
        if is_on_host(timesteps):
            return torch.tensor([self._host_index(timesteps)])
        if not isinstance(timesteps, torch.Tensor):
            timesteps = torch.full((1,), timesteps, dtype=torch.float64)
        timesteps = timesteps.reshape(-1)
        if timesteps.dtype not in TIMESTEP_DTYPES:
            raise ValueError(f"`{name}` must be float32 or float64, but is {timesteps.dtype}.")
        if is_readable(timesteps):
            return torch.from_numpy(self._nearest(name, timesteps.double().numpy()))
        grid = to_device(self._in_denoising_order(self.__dict__["timesteps"]), timesteps.device)
        return (grid[None] - timesteps[:, None]).abs().argmin(1)

    # ------------------------------------------------------------------------------------------------------ training

    def scale_noise(
        self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        x_t = alpha_t x_0 + sigma_t eps, in float32 at least; the result's dtype is the promotion of the two.

        Args:
            sample (`torch.Tensor` of shape `(B, ...)`): x_0.
            timestep (`float` or `torch.Tensor` of one element or B): t, of `timesteps`: of the training before
                `set_timesteps` is called, of the grid afterwards. A tensor may hold integers.
            noise (`torch.Tensor` of the same shape, *optional*): eps, drawn if not given. Each of the three may have 1
                instead of B.

        Raises:
            ValueError, TypeError: If shapes do not fit, or a timestep is not one of them.
        """
        self._follow()
        check_floating("sample", sample)
        if noise is None:
            noise = torch.randn_like(sample)
        if isinstance(timestep, torch.Tensor) and timestep.dtype in (torch.int32, torch.int64):
            timestep = timestep.double()  # of the training: integers are no indices here
        indices = self._indices("timestep", timestep)
        check_noise(noise, len(indices), "sample", sample)
        result = torch.promote_types(sample.dtype, noise.dtype)
        dtype = computing_dtype(torch.empty((), dtype=result, device="meta"))
        alpha_t, sigma_t = self._table.path(indices, sample, dtype)
        return cast(add(times(cast(sample, dtype), alpha_t), sigma_t, cast(noise, dtype)), result)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`scale_noise` by the name and the order that the other schedulers have."""
        return self.scale_noise(original_samples, timesteps, noise)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        What the model learns to return: u = eps - x_0, x_0 - eps if `invert_sigmas`, eps if the variance explodes.

        Args:
            sample (`torch.Tensor` of shape `(B, ...)`): x_0.
            noise (`torch.Tensor` of the same shape): eps.
            timesteps (`torch.Tensor`, *optional*): Not used, since u is the same all along the path.
        """
        check_noise(noise, 1, "sample", sample)
        if self._prediction_type == "epsilon":
            return noise
        return sample - noise if self.config.invert_sigmas else noise - sample

    def __deepcopy__(self, memo: dict[int, Any]):
        # A copy draws from the same generator: an audio scheduler that is one must not repeat the video's noise.
        new = memo[id(self)] = type(self).__new__(type(self))
        generator = self.__dict__.get("generator")
        memo[id(generator)] = generator
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


def _shown(values: np.ndarray) -> str:
    """A grid in a message, its middle left out where it is long."""
    shown = [f"{value:.6g}" for value in values]
    return "[" + ", ".join(shown if len(shown) < 9 else [*shown[:4], "...", *shown[-3:]]) + "]"
