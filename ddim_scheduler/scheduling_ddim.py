# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""DDIM (Song, Meng, Ermon 2020, https://arxiv.org/abs/2010.02502) as a diffusers scheduler.

The schedule is one table, made in float64 when the timesteps are set: a step looks its row up and applies eq. (12).

    here                    paper                       meaning
    --------------------    ------------------------    ------------------------------------------------------------
    alphas_cumprod[t]       alpha_t (!)                 DDPM's alpha-bar
    alpha_t, sigma_t        sqrt(alpha_t), sqrt(1 - .)  x_t = alpha_t x_0 + sigma_t eps
    t -> s                  tau_i -> tau_{i-1}          the interval of a step
    eta                     eta                         0: deterministic, 1: DDPM's ancestral sampling
    std                     sigma_t(eta)                standard deviation of the fresh noise, eq. (16)
    direction               sqrt(1 - alpha_s - std^2)   coefficient of eps, eq. (12)
    pred_original_sample    f_theta(x_t)                the predicted x_0, eq. (9)

This file travels with a model: it and what it imports need diffusers, huggingface_hub, numpy and torch alone.
"""

import inspect
import math
from typing import Any, Literal, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from .sharing import SCHEDULER_ENTRY, SharedScheduler
from .travelling import travelling_code

logger = logging.get_logger(__name__)

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace", "quadratic")
# DDPMScheduler's fixed types are taken so that its config goes there and back; eta alone sets the variance then.
VARIANCE_TYPES = (
    None,
    "sigma_hat",
    "learned",
    "learned_range",
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
)
MAX_TRAIN_TIMESTEPS = 1_000_000
# How a model was trained. diffusers lets the class that reads a config put its own defaults in the place of those that
# the class which wrote it had; these belong to the model and stay.
MODEL_KEYS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "snr_shift_scale"),
    *("prediction_type", "clip_sample", "rescale_betas_zero_snr"),
)


class _Row(NamedTuple):
    """Coefficients of the step t -> s: floats, or tensors that broadcast over a batch of samples."""

    alpha_t: Any
    sigma_t: Any
    alpha_s: Any
    sigma_s: Any
    std: Any  # eq. (16) at eta = 1
    direction: Any  # sqrt(sigma_s^2 - std^2) at eta = 1, without the cancellation
    fresh_std: Any  # std of x_t given x_s: the sigma-hat of the paper's section 5.1


class Transition(NamedTuple):
    """The Gaussian `p(x_s | x_t)` that a step draws from, float32 at least."""

    mean: torch.Tensor  # of the sample's shape
    std: torch.Tensor  # broadcasts over it
    pred_original_sample: torch.Tensor  # of the sample's shape


class EtaDDIMScheduler(SharedScheduler, SchedulerMixin, ConfigMixin):
    r"""
    Denoising diffusion implicit models (https://arxiv.org/abs/2010.02502), for any model that was trained as a DDPM.

    A drop-in for diffusers' `DDIMScheduler`: `pipe.scheduler = EtaDDIMScheduler.from_config(pipe.scheduler.config)`.
    `step` changes nothing in the scheduler, so one scheduler may serve several threads that share a timestep grid.

    Args:
        num_train_timesteps (`int`, defaults to 1000):
            Number T of noise levels the model was trained on, 1 to 1,000,000. Timesteps are the integers 0..T-1.
        beta_start (`float`, defaults to 0.0001):
            First beta, in (0, 1). Read by the schedules `linear`, `scaled_linear` and `sigmoid`.
        beta_end (`float`, defaults to 0.02):
            Last beta, in (0, 1). Read by the same schedules.
        beta_schedule (`str`, defaults to `"linear"`):
            `"linear"`, `"scaled_linear"` (latent diffusion), `"squaredcos_cap_v2"` (cosine), `"sigmoid"` (GeoDiff),
            `"exp"` or `"laplace"`.
        trained_betas (`list[float]`, `np.ndarray` or `torch.Tensor`, *optional*):
            T betas in [0, 1] instead of a named schedule. Stored in the config as a list.
        clip_sample (`bool`, defaults to `True`):
            Clamp the predicted x_0 to `[-clip_sample_range, clip_sample_range]`. Right for pixels, wrong for latents.
        set_alpha_to_one (`bool`, defaults to `True`):
            Whether the last step goes to x_0 itself. If not, it goes to the noise level of timestep 0, and that noise
            stays in the result.
        steps_offset (`int`, defaults to 0):
            Added to the timesteps of the `leading` spacing; lowered, with a warning, where it would leave 0..T-1.
        prediction_type (`str`, defaults to `"epsilon"`):
            What the model predicts: `"epsilon"`, `"sample"` (x_0) or `"v_prediction"` (https://arxiv.org/abs/2202.00512).
        thresholding (`bool`, defaults to `False`):
            Dynamic thresholding of the predicted x_0 (Imagen, https://arxiv.org/abs/2205.11487), instead of clamping.
        dynamic_thresholding_ratio (`float`, defaults to 0.995):
            The quantile of |x_0| taken as the threshold, in [0, 1].
        clip_sample_range (`float`, defaults to 1.0):
            Positive bound for `clip_sample`.
        sample_max_value (`float`, defaults to 1.0):
            Largest threshold for `thresholding`, at least 1.
        timestep_spacing (`str`, defaults to `"leading"`):
            `"leading"`, `"trailing"`, `"linspace"` (Table 2 of https://arxiv.org/abs/2305.08891) or `"quadratic"` (the
            official code's `quad`; where that repeats small timesteps, from about 29 steps of 1000 on, the i-th
            smallest is at least i).
        rescale_betas_zero_snr (`bool`, defaults to `False`):
            Rescale the betas so that the last timestep is pure noise (Algorithm 1 of https://arxiv.org/abs/2305.08891).
        eta (`float`, defaults to 0.0):
            Used when a call of `step` gives none, in [0, 1].
        use_clipped_model_output (`bool`, defaults to `False`):
            Used when a call of `step` gives none: re-derive eps from the clipped x_0.
        variance_type (`str`, *optional*):
            `None`: eq. (16). `"sigma_hat"`: the over-dispersed variance of the paper's Table 1. `"learned"` and
            `"learned_range"`: the model returns 2C channels and the second half holds the log-variance, or its place
            between the two bounds (https://arxiv.org/abs/2102.09672). eta scales the standard deviation of each.
            DDPMScheduler's `fixed_*` names are accepted and mean `None`.
        snr_shift_scale (`float`, defaults to 1.0):
            Divides the signal-to-noise ratio of every timestep (CogVideoX, https://arxiv.org/abs/2408.06072), positive.

    Raises:
        ValueError, TypeError: for any argument out of its range or of a wrong type; the message names it.
    """

    # The library that diffusers writes into a model_index.json: the package, and the name of the file which
    # `save_pretrained` writes for those who do not have it. This module is called otherwise in that.
    __module__ = "ddim_scheduler"
    _code = travelling_code(__name__, SCHEDULER_ENTRY)
    _compatibles = [e.name for e in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | torch.Tensor | list[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: Literal["leading", "trailing", "linspace", "quadratic"] = "leading",
        rescale_betas_zero_snr: bool = False,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        variance_type: str | None = None,
        snr_shift_scale: float = 1.0,
    ):
        _check_int("num_train_timesteps", num_train_timesteps, 1, MAX_TRAIN_TIMESTEPS)
        _check_number("beta_start", beta_start, 0.0, 1.0, open_interval=True)
        _check_number("beta_end", beta_end, 0.0, 1.0, open_interval=True)
        _check_choice("beta_schedule", beta_schedule, BETA_SCHEDULES)
        _check_bool("clip_sample", clip_sample)
        _check_bool("set_alpha_to_one", set_alpha_to_one)
        _check_int("steps_offset", steps_offset, 0)
        _check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        _check_bool("thresholding", thresholding)
        _check_number("dynamic_thresholding_ratio", dynamic_thresholding_ratio, 0.0, 1.0)
        _check_number("clip_sample_range", clip_sample_range, 0.0, open_interval=True)
        _check_number("sample_max_value", sample_max_value, 1.0)
        _check_choice("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
        _check_bool("rescale_betas_zero_snr", rescale_betas_zero_snr)
        _check_number("eta", eta, 0.0, 1.0)
        _check_bool("use_clipped_model_output", use_clipped_model_output)
        _check_choice("variance_type", variance_type, VARIANCE_TYPES)
        _check_number("snr_shift_scale", snr_shift_scale, 0.0, open_interval=True)

        if trained_betas is None:
            betas = _betas(beta_schedule, num_train_timesteps, beta_start, beta_end)
        else:
            betas = _as_betas(trained_betas, num_train_timesteps)
            self.register_to_config(trained_betas=betas.tolist())

        # log alpha-bar: sums of log1p keep every digit of the small betas, which 1 - cumprod(1 - beta) loses
        with np.errstate(divide="ignore"):  # beta = 1 is log 0: zero terminal SNR
            log_alphas_cumprod = np.log1p(-betas).cumsum()
            if snr_shift_scale != 1:  # abar / (k + (1 - k) abar), the k-th part of abar / (1 - abar)
                log_alphas_cumprod -= np.log1p((1 - snr_shift_scale) * np.expm1(log_alphas_cumprod))
            if rescale_betas_zero_snr:
                log_alphas_cumprod = _rescale_zero_terminal_snr(log_alphas_cumprod)
            if snr_shift_scale != 1 or rescale_betas_zero_snr:
                betas = -np.expm1(np.diff(log_alphas_cumprod, prepend=0.0))
        self._log_alphas_cumprod = log_alphas_cumprod

        # public state, float32 on the CPU as in diffusers
        public = (betas, 1 - betas, np.exp(log_alphas_cumprod))
        self.betas, self.alphas, self.alphas_cumprod = (torch.from_numpy(a.astype(np.float32)) for a in public)
        self.final_alpha_cumprod = torch.ones(()) if set_alpha_to_one else self.alphas_cumprod[0]
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self._set_grid(np.arange(num_train_timesteps)[::-1], device=None)

    @classmethod
    def from_config(
        cls, config: FrozenDict | dict[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ):
        """
        Makes a scheduler from the config of this or another scheduler.

        Where the other scheduler knows no `clip_sample` (Euler, DPM-Solver, PNDM, UniPC...), clipping is off unless
        asked for: such models are often latent ones, which must not be clamped.

        Args:
            config (`dict`): A scheduler's `config`, or the content of a `scheduler_config.json`.
            return_unused_kwargs (`bool`, defaults to `False`): Also return the entries that were not used.
            kwargs: Arguments of the constructor; they replace the config's.

        Raises:
            TypeError: If `config` is not a dictionary.
            ValueError: If `config` has no beta schedule (flow matching, EDM, IPNDM...), or holds an invalid value.
        """
        if not isinstance(config, dict):
            raise TypeError(f"`config` must be a dictionary of scheduler arguments, but is {config!r}.")

        other = _arguments_of_other_scheduler(config, cls)
        if other:
            if not other.keys() & {"beta_start", "beta_schedule"} and config.get("trained_betas") is None:
                name = config.get("_class_name", "scheduler")
                raise ValueError(f"`config` of a {name} cannot be used: it has no beta schedule (keys: {[*config]}).")
            if "clip_sample" not in config:
                kwargs.setdefault("clip_sample", other.get("clip_sample", False))
        replaceable = [key for key in config.get("_use_default_values", []) if key not in MODEL_KEYS]
        config = {**config, "_use_default_values": replaceable}
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    # ------------------------------------------------------------------------------------------------- the grid

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | np.ndarray | torch.Tensor | None = None,
    ):
        """
        Sets the grid of timesteps for sampling: `self.timesteps`, int64, strictly decreasing.

        Args:
            num_inference_steps (`int`, *optional*):
                Number N of steps, 1..T, placed by `config.timestep_spacing`.
            device (`str` or `torch.device`, *optional*):
                Where `self.timesteps` and the coefficients that go with them are put.
            timesteps (`list[int]`, *optional*):
                The timesteps themselves instead of a number: integers in 0..T-1, strictly decreasing.

        Raises:
            ValueError: If not exactly one of the two is given, if one is out of range, or if the grid visits a
                timestep of zero signal (zero terminal SNR) while the model predicts epsilon.
            TypeError: If one is not made of integers.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(
                "Exactly one of `num_inference_steps` and `timesteps` must be given, but they are "
                f"{num_inference_steps!r} and {timesteps!r}."
            )
        num_train_timesteps = self.config.num_train_timesteps
        if num_inference_steps is not None:
            num_inference_steps = _python_number(num_inference_steps)
            _check_int("num_inference_steps", num_inference_steps, 1, num_train_timesteps)
            grid = _spaced_timesteps(
                self.config.timestep_spacing, num_train_timesteps, num_inference_steps, self.config.steps_offset
            )
        else:
            grid = _as_timesteps(timesteps, num_train_timesteps)
        self._check_signal(grid)
        self._set_grid(grid, device)
        self.num_inference_steps = len(grid)

    def _set_grid(self, grid: np.ndarray, device: str | torch.device | None):
        """Fills the table: row t holds the step from t to the next lower timestep of the grid."""
        ascending = grid[::-1]
        prev_timesteps = np.full(len(self._log_alphas_cumprod) + 1, -1)
        prev_timesteps[ascending + 1] = ascending
        prev_timesteps = np.maximum.accumulate(prev_timesteps)[:-1]  # the next lower one for all those between

        # the last entry of each is the level that the last step goes to, timestep -1
        log = np.append(self._log_alphas_cumprod, self._final_log_alpha_cumprod)
        levels = log, np.exp(log / 2), np.sqrt(-np.expm1(log))
        log_t, alpha_t, sigma_t = (level[:-1] for level in levels)
        log_s, alpha_s, sigma_s = (level[prev_timesteps] for level in levels)
        fresh_std = np.sqrt(-np.expm1(log_t - log_s))
        ratio = sigma_s / sigma_t
        std = ratio * fresh_std
        direction = np.exp((log_t - log_s) / 2) * sigma_s * ratio

        table = np.array(_Row(alpha_t, sigma_t, alpha_s, sigma_s, std, direction, fresh_std)).T
        device_table = _to_device(torch.from_numpy(table), device)
        # assigned together, so that a device that is not there changes nothing
        self.timesteps = _to_device(torch.from_numpy(grid.astype(np.int64)), device)
        self._prev_timesteps, self._table, self._device_table = prev_timesteps, table, device_table

    @property
    def _final_log_alpha_cumprod(self) -> float:
        return 0.0 if self.config.set_alpha_to_one else self._log_alphas_cumprod[0]

    def previous_timestep(self, timestep: int | torch.Tensor) -> int:
        """The timestep that a step from `timestep` goes to: the next lower one of the grid, -1 after the last."""
        return int(self._prev_timesteps[self._check_timestep(timestep)])

    # ------------------------------------------------------------------------------------------------- the step

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float | torch.Tensor | None = None,
        use_clipped_model_output: bool | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        Draws x_s from `p(x_s | x_t)`, eq. (12). The arithmetic is float32 at least, the result has the sample's dtype.

        Args:
            model_output (`torch.Tensor` of shape `(B, C, ...)`, or `(B, 2C, ...)` with a learned variance):
                What the model returned for `sample` at `timestep`.
            timestep (`int` or `torch.Tensor`):
                t, in 0..T-1; a tensor has one element or B. A t of the grid goes to its successor, the last one to
                x_0; a t between two of them goes to the next lower one. The range of a tensor on an accelerator is not
                checked, since that would make the host wait.
            sample (`torch.Tensor` of shape `(B, C, ...)`):
                x_t, floating point.
            eta (`float` or `torch.Tensor` of one or B elements, *optional*):
                eta of eq. (16), in [0, 1]; `config.eta` if not given. A float 0 draws no random numbers.
            use_clipped_model_output (`bool`, *optional*):
                Re-derive eps from the clipped x_0; the config's value if not given.
            generator (`torch.Generator` or a list of B, *optional*):
                Source of the noise; a list has one for each sample.
            variance_noise (`torch.Tensor` of the sample's shape, *optional*):
                The noise itself, instead of a generator.
            return_dict (`bool`, defaults to `True`):
                Whether to return a `DDIMSchedulerOutput` or a plain tuple.

        Returns:
            `DDIMSchedulerOutput` or `tuple`: `prev_sample` (x_s) and `pred_original_sample` (x_0).

        Raises:
            ValueError, TypeError: If `set_timesteps` was not called, or for an argument of wrong value, shape or type.
        """
        _check_step_arguments(model_output, sample, generator, variance_noise)
        prev_sample, std, pred_original_sample = self._transition(
            model_output, timestep, sample, eta, use_clipped_model_output
        )
        # 5. x_s = mean + std z, eq. (12). eta = 0 draws nothing.
        if std is not None:
            if variance_noise is None:
                variance_noise = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
            _add_(prev_sample, std, _cast(variance_noise, prev_sample.dtype))

        prev_sample, pred_original_sample = _cast(prev_sample, sample.dtype), _cast(pred_original_sample, sample.dtype)
        if not return_dict:
            return prev_sample, pred_original_sample
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def transition(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float | torch.Tensor | None = None,
        use_clipped_model_output: bool | None = None,
    ) -> Transition:
        """
        The Gaussian that `step` draws from; arguments and errors are those of `step`. Differentiable.

        Returns:
            `Transition`: mean and std of `p(x_s | x_t)`, and the predicted x_0. The std is 0 at eta = 0 and on the step
            to x_0.
        """
        _check_step_arguments(model_output, sample)
        mean, std, pred_original_sample = self._transition(
            model_output, timestep, sample, eta, use_clipped_model_output
        )
        if not isinstance(std, torch.Tensor):
            std = torch.full((), std or 0.0, dtype=mean.dtype, device=mean.device)
        return Transition(mean, std.to(mean.dtype), pred_original_sample)

    @staticmethod
    def log_prob(
        prev_sample: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, reduction: Literal["sum", "mean"] = "sum"
    ) -> torch.Tensor:
        """
        Log-density of x_s under `Normal(mean, std)`, for policy gradients. Differentiable.

        Args:
            prev_sample (`torch.Tensor` of shape `(B, ...)`): x_s.
            mean (`torch.Tensor` of the same shape): From `transition`.
            std (`torch.Tensor` that broadcasts): From `transition`. Where it is 0 the log-density counts as 0.
            reduction (`str`, defaults to `"sum"`): `"sum"` over the elements of each sample, or their `"mean"`.

        Returns:
            `torch.Tensor` of shape `(B,)`.

        Raises:
            ValueError, TypeError: If the shapes do not fit, an argument is no floating point tensor, or the reduction
                is unknown.
        """
        _check_choice("reduction", reduction, ("sum", "mean"))
        for name, tensor in (("prev_sample", prev_sample), ("mean", mean), ("std", std)):
            _check_floating(name, tensor)
        if prev_sample.shape != mean.shape:
            raise ValueError(
                f"`prev_sample` must have the mean's shape {tuple(mean.shape)}, but has {tuple(prev_sample.shape)}."
            )
        sizes = zip(reversed(std.shape), reversed(mean.shape), strict=False)
        if std.ndim > mean.ndim or any(size not in (1, full) for size, full in sizes):
            raise ValueError(f"`std` must broadcast over the mean's shape {tuple(mean.shape)}, but has {std.shape}.")
        random = std > 0
        positive_std = torch.where(random, std, torch.ones_like(std))
        log_prob = -(((prev_sample - mean) / positive_std) ** 2) / 2 - positive_std.log() - math.log(2 * math.pi) / 2
        log_prob = torch.where(random, log_prob, torch.zeros_like(log_prob)).flatten(1)
        return log_prob.sum(1) if reduction == "sum" else log_prob.mean(1)

    def noise_between(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        prev_sample: torch.Tensor,
        eta: float | torch.Tensor | None = None,
        use_clipped_model_output: bool | None = None,
    ) -> torch.Tensor:
        """
        The z with which `step(..., variance_noise=z)` goes from `sample` (x_t) to `prev_sample` (x_s).

        Args:
            prev_sample (`torch.Tensor` of the sample's shape): x_s. The other arguments are those of `step`.

        Returns:
            `torch.Tensor` of the sample's shape, float32 at least; 0 where the std is 0, since no z matters there.

        Raises:
            ValueError, TypeError: As `step`.
        """
        _check_floating("prev_sample", prev_sample)
        mean, std, _ = self.transition(model_output, timestep, sample, eta, use_clipped_model_output)
        if prev_sample.shape != sample.shape:
            raise ValueError(
                f"`prev_sample` must have the sample's shape {tuple(sample.shape)}, but has {tuple(prev_sample.shape)}."
            )
        return torch.where(std > 0, (prev_sample - mean) / torch.where(std > 0, std, torch.ones_like(std)), 0.0)

    def midpoint_step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        other_sample: torch.Tensor,
        inverse: bool = False,
    ) -> torch.Tensor:
        """
        The sample at one neighbour of t on the grid from x_t and the sample at the other one: O-BELM
        (https://arxiv.org/abs/2410.07273), a midpoint rule of second order for eta = 0. Algebra runs it backwards.

        With sigma/alpha as the noise level, a the interval to the next higher timestep u and b that to the next lower
        one s: x_s/alpha_s = (b/a)^2 x_u/alpha_u + (1 - (b/a)^2) x_t/alpha_t - b (a + b)/a eps.

        Args:
            model_output (`torch.Tensor`): What the model returned for `sample` at `timestep`, as in `step`.
            timestep (`int` or `torch.Tensor` of one element): t, of the grid and not its first.
            sample (`torch.Tensor` of shape `(B, C, ...)`): x_t, floating point.
            other_sample (`torch.Tensor` of the same shape): x_u, or x_s if `inverse`.
            inverse (`bool`, defaults to `False`): Whether to go from x_s to x_u instead of from x_u to x_s.

        Returns:
            `torch.Tensor`: x_s, or x_u if `inverse`; the arithmetic and the dtype are as in `step`.

        Raises:
            ValueError, TypeError: As `step`; or if x_0 is clipped or thresholded, if `timestep` is not of the grid or
                its first, or if the timestep above has no signal (zero terminal SNR).
        """
        self._check_timesteps_are_set()
        _check_step_arguments(model_output, sample)
        _check_floating("other_sample", other_sample)
        if other_sample.shape != sample.shape:
            raise ValueError(
                f"`other_sample` must have the sample's shape {tuple(sample.shape)}, but has "
                f"{tuple(other_sample.shape)}."
            )
        self._check_invertible()
        t, grid = self._check_timestep(timestep), sorted(self.timesteps.tolist())
        if t not in grid[:-1]:
            raise ValueError(f"`timestep` must be one of the grid below {grid[-1]}, but is {t}.")
        row, above = (_Row(*self._table[k].tolist()) for k in (t, grid[grid.index(t) + 1]))
        if above.alpha_t == 0:
            raise ValueError(f"`timestep` {t} has no midpoint step: there is no signal at the one above it.")

        a = above.sigma_t / above.alpha_t - row.sigma_t / row.alpha_t
        b = row.sigma_t / row.alpha_t - row.sigma_s / row.alpha_s
        of_above, of_sample = row.alpha_s * (b / a) ** 2 / above.alpha_t, row.alpha_s * (1 - (b / a) ** 2) / row.alpha_t
        of_epsilon = -row.alpha_s * b * (a + b) / a
        *_, r, w = _prediction_coefficients(self.config.prediction_type, row.alpha_t, row.sigma_t)

        dtype = _computing_dtype(sample)
        model_output = _cast(self._split_output(model_output, sample)[0], dtype)
        change = (of_sample + of_epsilon * r) * _cast(sample, dtype) + of_epsilon * w * model_output
        other_sample = _cast(other_sample, dtype)
        result = (other_sample - change) / of_above if inverse else of_above * other_sample + change
        return _cast(result, sample.dtype)

    def _check_timesteps_are_set(self):
        if self.num_inference_steps is None:
            raise ValueError("`set_timesteps` must be called before `step`: the scheduler has no timesteps yet.")

    def _check_invertible(self):
        for name in ("clip_sample", "thresholding"):
            if self.config[name]:
                raise ValueError(
                    f"`{name}` is True, and a step that changes the predicted x_0 cannot be inverted; make the "
                    f"scheduler by `from_config(scheduler.config, {name}=False)`."
                )

    def _split_output(
        self, model_output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The model output, of the sample's shape, and the half for a learned variance, if the model has one."""
        variance_type = self.config.variance_type
        if variance_type in ("learned", "learned_range"):
            return _split_variance(model_output, sample)
        if model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` must have the sample's shape {tuple(sample.shape)}, but has "
                f"{tuple(model_output.shape)} (`variance_type` is {variance_type!r})."
            )
        return model_output, None

    def _transition(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float | torch.Tensor | None,
        use_clipped_model_output: bool | None,
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Mean and std of `p(x_s | x_t)` and the predicted x_0, in float32 at least. The std is None for a float 0."""
        self._check_timesteps_are_set()
        config = self.config
        if use_clipped_model_output is None:
            use_clipped_model_output = config.use_clipped_model_output
        _check_bool("use_clipped_model_output", use_clipped_model_output)

        # 1. the row of t, the std of eq. (16) and the direction that goes with it:
        #    sigma_s^2 - std^2 = (1 - eta^2) sigma_s^2 + (eta direction(1))^2, a sum that cannot become negative
        row, eta, sqrt = self._row(timestep, config.eta if eta is None else eta, sample)
        if isinstance(eta, float) and eta == 0:
            direction, std = row.sigma_s, None
        else:
            direction = sqrt((1 - eta * eta) * row.sigma_s * row.sigma_s + eta * eta * row.direction * row.direction)
            std = eta * (row.fresh_std if config.variance_type == "sigma_hat" else row.std)
        model_output, variance = self._split_output(model_output, sample)
        if std is not None and variance is not None:
            std = _times(_learned_std(variance, row, config.variance_type), eta)

        # 2. x_0 = p x_t + q m and eps = r x_t + w m, where m is the model output
        if sample.dtype != torch.float32 or model_output.dtype != torch.float32:
            dtype = _computing_dtype(sample)
            sample, model_output = sample.to(dtype), model_output.to(dtype)
        prediction_type, alpha_s = config.prediction_type, row.alpha_s
        p, q, r, w = _prediction_coefficients(prediction_type, row.alpha_t, row.sigma_t)
        if prediction_type == "epsilon":  # the difference first: it may be small, and its terms are then rounded less
            x_0 = _times_(_add(sample, -row.sigma_t, model_output), p)
        elif prediction_type == "sample":
            x_0 = model_output.clone()
        else:
            x_0 = _add_(_times(sample, p), q, model_output)

        # 3. threshold or clip x_0
        if config.thresholding:
            x_0 = self._threshold_sample(x_0)
        elif config.clip_sample:
            x_0.clamp_(-config.clip_sample_range, config.clip_sample_range)

        # 4. the mean of x_s, alpha_s x_0 + direction eps, eq. (12), its factors gathered so that each is rounded once
        if not (config.clip_sample or config.thresholding):
            mean = _add_(_times(sample, alpha_s * p + direction * r), alpha_s * q + direction * w, model_output)
        elif use_clipped_model_output:  # with eps = (x_t - alpha_t x_0) / sigma_t of the clipped x_0
            b = direction / row.sigma_t
            mean = _add_(_times(x_0, alpha_s - b * row.alpha_t), b, sample)
        else:
            mean = _add_(_times(x_0, alpha_s), direction * w, model_output)
            if prediction_type != "epsilon":
                _add_(mean, direction * r, sample)
        return mean, std, x_0

    def _row(self, timestep: int | torch.Tensor, eta: float | torch.Tensor, sample: torch.Tensor):
        """The row of t, eta, and the square root to use on them: floats where reading t makes nobody wait."""
        if not isinstance(eta, torch.Tensor):
            eta = _python_number(eta)
            _check_number("eta", eta, 0.0, 1.0)
            eta = float(eta)
            if _is_on_host(timestep):
                t = self._check_timestep(timestep)
                row = _Row(*self._table[t].tolist())
                if row.alpha_t == 0:
                    self._check_signal([t])
                return row, eta, math.sqrt
        if not isinstance(timestep, torch.Tensor):
            t = timestep if torch.compiler.is_compiling() else self._check_timestep(timestep)
            timestep = torch.full((1,), t)
        row = self._rows("timestep", timestep, sample)
        if timestep.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_signal(timestep.flatten().tolist())
        return row, _check_eta(eta, sample, row.alpha_t.dtype) if isinstance(eta, torch.Tensor) else eta, torch.sqrt

    def _rows(self, name: str, timesteps: torch.Tensor, sample: torch.Tensor) -> _Row:
        """The rows of one or B timesteps as tensors of shape (1 or B, 1, ...) on the sample's device."""
        timesteps = self._check_timesteps(name, timesteps, sample)
        table = self._device_table
        if table.device != sample.device:
            table = _to_device(torch.from_numpy(self._table), sample.device)
        rows = table[_to_device(timesteps, sample.device)]
        return _Row(*rows.view(-1, len(_Row._fields), *(1,) * (sample.ndim - 1)).unbind(1))

    def _check_timestep(self, timestep: int | torch.Tensor) -> int:
        t = timestep.tolist() if isinstance(timestep, torch.Tensor) else _python_number(timestep)
        while isinstance(t, list) and len(t) == 1:  # a tensor of one element
            t = t[0]
        if isinstance(t, bool) or not isinstance(t, int):
            raise TypeError(f"`timestep` must be an integer, but is {timestep!r}.")
        if not 0 <= t < len(self._table):
            raise ValueError(f"`timestep` must be in 0..{len(self._table) - 1}, but is {t}.")
        return t

    def _check_signal(self, timesteps: Any):
        """Refuses epsilon prediction where alpha_t is 0 (zero terminal SNR)."""
        if self.config.prediction_type != "epsilon":
            return
        without_signal = np.asarray(timesteps)[np.exp(self._log_alphas_cumprod[timesteps] / 2) == 0]
        if len(without_signal):
            raise ValueError(
                f"`prediction_type` 'epsilon' tells nothing about x_0 at timestep {without_signal[0]}, where there is "
                "no signal; use 'v_prediction', 'sample', or lower timesteps (`timestep_spacing='leading'`)."
            )

    def _check_timesteps(self, name: str, timesteps: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """One or B timesteps as int64. Their range is checked where that makes nobody wait."""
        if not isinstance(timesteps, torch.Tensor):
            raise TypeError(f"`{name}` must be a tensor of integers, but is {timesteps!r}.")
        if timesteps.is_floating_point() or timesteps.dtype == torch.bool or timesteps.is_complex():
            raise TypeError(f"`{name}` must be integers, but have dtype {timesteps.dtype}.")
        timesteps = timesteps.reshape(-1).long()
        if len(timesteps) not in (1, len(sample)):
            raise ValueError(
                f"`{name}` must hold one timestep or one for each of the {len(sample)} samples, but hold "
                f"{len(timesteps)}."
            )
        if timesteps.device.type == "cpu" and not torch.compiler.is_compiling():
            bad = [t for t in timesteps.tolist() if not 0 <= t < self.config.num_train_timesteps]
            if bad:
                raise ValueError(f"`{name}` must be in 0..{self.config.num_train_timesteps - 1}, but hold {bad}.")
        return timesteps

    def _threshold_sample(self, sample: torch.Tensor) -> torch.Tensor:
        """Dynamic thresholding of each sample (https://arxiv.org/abs/2205.11487, section 2.3), of any size."""
        threshold = _quantile(sample.abs().flatten(1), self.config.dynamic_thresholding_ratio)
        threshold = threshold.clamp(1, self.config.sample_max_value).view(-1, *(1,) * (sample.ndim - 1))
        return sample.clamp(-threshold, threshold) / threshold

    # ------------------------------------------------------------------------------ training, and the host's contract

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """
        x_t = alpha_t x_0 + sigma_t eps, in float32 at least and returned in the dtype of `original_samples`.

        Args:
            original_samples (`torch.Tensor` of shape `(B, ...)`): x_0.
            noise (`torch.Tensor` of the same shape): eps.
            timesteps (`torch.Tensor` of one or B integers): t, in 0..T-1.

        Raises:
            ValueError, TypeError: If shapes differ, or timesteps are out of range or no integers.
        """
        alpha_t, sigma_t, dtype = self._path(original_samples, noise, timesteps)
        noisy = _add_(_times(_cast(original_samples, dtype), alpha_t), sigma_t, _cast(noise, dtype))
        return _cast(noisy, original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """
        v = alpha_t eps - sigma_t x_0 (https://arxiv.org/abs/2202.00512), the target of `v_prediction`.

        Args:
            sample (`torch.Tensor` of shape `(B, ...)`): x_0.
            noise (`torch.Tensor` of the same shape): eps.
            timesteps (`torch.Tensor` of one or B integers): t, in 0..T-1.

        Raises:
            ValueError, TypeError: If shapes differ, or timesteps are out of range or no integers.
        """
        alpha_t, sigma_t, dtype = self._path(sample, noise, timesteps)
        velocity = _add_(_times(_cast(noise, dtype), alpha_t), -sigma_t, _cast(sample, dtype))
        return _cast(velocity, sample.dtype)

    def _path(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor):
        """alpha_t and sigma_t, shaped for the sample, and the dtype to compute in."""
        for name, tensor in (("sample", sample), ("noise", noise)):
            _check_floating(name, tensor)
        if noise.shape != sample.shape:
            raise ValueError(f"`noise` must have the shape {tuple(sample.shape)}, but has {tuple(noise.shape)}.")
        row = self._rows("timesteps", timesteps, sample)
        return row.alpha_t, row.sigma_t, _computing_dtype(sample)

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """Returns the sample as it is: DDIM scales no model input."""
        return sample

    def set_begin_index(self, begin_index: int = 0):
        """Accepted for pipelines that call it, without effect: a step is told its timestep and needs no index."""

    def _get_variance(self, timestep: int, prev_timestep: int) -> torch.Tensor:
        """Square of eq. (16) at eta = 1 for any two timesteps; a negative `prev_timestep` is the final one."""
        log_t = self._log_alphas_cumprod[int(timestep)]
        log_s = self._log_alphas_cumprod[int(prev_timestep)] if prev_timestep >= 0 else self._final_log_alpha_cumprod
        variance = np.expm1(log_s) / np.expm1(log_t) * -np.expm1(log_t - log_s)
        return torch.tensor(variance, dtype=torch.float32)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


class EtaDDIMInverseScheduler(EtaDDIMScheduler):
    r"""
    Walks the grid of `EtaDDIMScheduler` towards noise: a drop-in for diffusers' `DDIMInverseScheduler`, made by
    `EtaDDIMInverseScheduler.from_config(pipe.scheduler.config)`.

    `timesteps` are those of the sampler in ascending order, for every spacing and for custom timesteps, which are given
    in decreasing order, as to the sampler. All arguments are those of `EtaDDIMScheduler`; eta and what goes with it are
    not used. `transition`, `log_prob`, `noise_between` and `previous_timestep` are the sampler's: they begin at
    `timestep`, where a `step` of this class ends.
    """

    __module__ = EtaDDIMScheduler.__module__
    _code = EtaDDIMScheduler._code

    def _set_grid(self, grid: np.ndarray, device: str | torch.device | None):
        super()._set_grid(grid, device)
        self.timesteps = self.timesteps.flip(0)

    def step(  # type: ignore[override]
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        The x_t from which the sampler's step at eta = 0 with this model output goes to x_s, eq. (12) solved for x_t.

        The model output at x_t is not known before x_t is, so pipelines give that of x_s at t; how far this is from the
        truth falls with the step. `EtaDDIMPipeline.invert` solves the equation.

        Args:
            model_output (`torch.Tensor`): What the model returned for `sample` at `timestep`.
            timestep (`int` or `torch.Tensor` of one element): t, where the step ends.
            sample (`torch.Tensor` of shape `(B, C, ...)`): x_s at the next lower timestep of the grid; x_0 at first.
            return_dict (`bool`, defaults to `True`): Whether to return a `DDIMSchedulerOutput` or a plain tuple.

        Returns:
            `DDIMSchedulerOutput` or `tuple`: `prev_sample` (x_t) and `pred_original_sample` (x_0), in the sample's
            dtype. x_0 is clipped or thresholded as the config says, which is no inversion where it changes x_0.

        Raises:
            ValueError, TypeError: As `EtaDDIMScheduler.step`; and where the step forgets x_t: from x_0 with prediction
                type `"sample"`.
        """
        self._check_timesteps_are_set()
        _check_step_arguments(model_output, sample)
        t, dtype, config = self._check_timestep(timestep), _computing_dtype(sample), self.config
        self._check_signal([t])
        row = _Row(*self._table[t].tolist())
        model_output = _cast(self._split_output(model_output, sample)[0], dtype)

        # 1. the sampler's step is x_s = a x_t + b m, where m is the model output
        alpha_t, sigma_t, alpha_s, sigma_s = row[:4]
        p, q, r, w = _prediction_coefficients(config.prediction_type, alpha_t, sigma_t)
        a, b = alpha_s * p + sigma_s * r, alpha_s * q + sigma_s * w
        if a == 0:
            raise ValueError(
                f"`prediction_type` {config.prediction_type!r} cannot be inverted at timestep {t}: the sampler's step "
                "from there does not depend on the sample."
            )
        sample, dtype_of_sample = _cast(sample, dtype), sample.dtype
        next_sample = (sample - b * model_output) / a

        # 2. eps from x_t and m, x_0 from x_s = alpha_s x_0 + sigma_s eps; x_0 is thresholded or clipped
        epsilon = r * next_sample + w * model_output
        pred_original_sample = (sample - sigma_s * epsilon) / alpha_s
        if config.thresholding:
            pred_original_sample = self._threshold_sample(pred_original_sample)
        elif config.clip_sample:
            pred_original_sample = pred_original_sample.clamp(-config.clip_sample_range, config.clip_sample_range)
        if config.thresholding or config.clip_sample:
            next_sample = alpha_t * pred_original_sample + sigma_t * epsilon

        next_sample = _cast(next_sample, dtype_of_sample)
        pred_original_sample = _cast(pred_original_sample, dtype_of_sample)
        if not return_dict:
            return next_sample, pred_original_sample
        return DDIMSchedulerOutput(prev_sample=next_sample, pred_original_sample=pred_original_sample)


# ------------------------------------------------------------------------------------------------------ noise schedules


def _betas(beta_schedule: str, num_train_timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
    """The T betas of a named schedule in float64, the same curves as in diffusers."""
    if beta_schedule == "linear":
        return np.linspace(beta_start, beta_end, num_train_timesteps)
    if beta_schedule == "scaled_linear":
        return np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
    if beta_schedule == "sigmoid":
        return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, num_train_timesteps)))

    # the others are 1 - alpha_bar(u + 1/T) / alpha_bar(u), at most 0.999
    u = np.arange(num_train_timesteps + 1) / num_train_timesteps
    if beta_schedule == "squaredcos_cap_v2":
        angle = (u + 0.008) / 1.008 * np.pi / 2
        low, high = angle[:-1], angle[1:]
        # cos^2(low) - cos^2(high) as a product, which keeps the digits of the first, small betas
        betas = np.sin(high - low) * np.sin(high + low) / np.cos(low) ** 2
    elif beta_schedule == "exp":
        betas = -np.expm1(-12.0 * np.diff(u))
    else:  # laplace
        log_snr = -0.5 * np.copysign(1, 0.5 - u) * np.log(1 - 2 * np.abs(0.5 - u) + 1e-6)
        betas = -np.expm1(np.diff(-0.5 * np.log1p(np.exp(-log_snr))))
    return np.minimum(betas, 0.999)


def _as_betas(trained_betas, num_train_timesteps: int) -> np.ndarray:
    try:
        betas = torch.as_tensor(trained_betas, dtype=torch.float64).cpu().numpy().copy()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`trained_betas` must be a list of numbers, but is {trained_betas!r}.") from None
    if betas.shape != (num_train_timesteps,):
        raise ValueError(
            f"`trained_betas` must hold `num_train_timesteps` = {num_train_timesteps} values, but its shape is "
            f"{betas.shape}."
        )
    valid = (betas >= 0) & (betas < 1)
    valid[0] &= betas[0] > 0
    if num_train_timesteps > 1:
        valid[-1] |= betas[-1] == 1
    if not valid.all():
        bad = int(np.argmin(valid))
        raise ValueError(
            f"`trained_betas` must be in [0, 1), the first one above 0 and only the last one 1, but number {bad} is "
            f"{betas[bad]}."
        )
    return betas


def _rescale_zero_terminal_snr(log_alphas_cumprod: np.ndarray) -> np.ndarray:
    """
    Algorithm 1 of https://arxiv.org/abs/2305.08891 on log alpha-bar: shifts and scales alpha_t = sqrt(alpha-bar_t) so
    that the first stays and the last becomes 0. Each end uses the form that keeps its digits there.
    """
    if np.isneginf(log_alphas_cumprod[-1]):
        return log_alphas_cumprod
    if len(log_alphas_cumprod) < 2:
        raise ValueError("`rescale_betas_zero_snr` needs `num_train_timesteps` of at least 2, but it is 1.")
    from_first = (log_alphas_cumprod - log_alphas_cumprod[0]) / 2
    from_last = (log_alphas_cumprod - log_alphas_cumprod[-1]) / 2
    ratio = np.expm1(from_last) / np.expm1(from_last[0])
    near_first = np.log1p(np.expm1(from_first) / -np.expm1(from_first[-1]))
    return log_alphas_cumprod[0] + 2 * np.where(ratio > 0.5, near_first, np.log(ratio))


# ------------------------------------------------------------------------------------------------------------ the grid


def _spaced_timesteps(
    spacing: str, num_train_timesteps: int, num_inference_steps: int, steps_offset: int
) -> np.ndarray:
    """N timesteps in 0..T-1, strictly decreasing; diffusers' own wherever those are N and in range."""
    T, N = num_train_timesteps, num_inference_steps
    i = np.arange(N)
    if spacing == "leading":
        ascending = i * (T // N)
        room = T - 1 - int(ascending[-1])
        if steps_offset > room:
            logger.warning(
                f"`steps_offset` {steps_offset} is lowered to {room}: {N} of {T} timesteps leave no more room."
            )
        ascending += min(steps_offset, room)
    elif spacing == "trailing":
        # of `arange`'s entries only the first N are in range; rounding may give it one more
        ascending = np.arange(T, 0, -T / N)[N - 1 :: -1].round().astype(np.int64) - 1
    elif spacing == "linspace":
        ascending = np.linspace(0, T - 1, N).round().astype(np.int64)
    elif spacing == "quadratic":
        # the official code's `quad`; where its first entries coincide (large N), the nearest distinct ones above
        ascending = np.maximum((np.linspace(0, math.sqrt(0.8 * T), N) ** 2).astype(np.int64), i)
    else:
        raise ValueError(f"`timestep_spacing` must be one of {TIMESTEP_SPACINGS}, but is {spacing!r}.")
    if spacing != "quadratic" and ascending[-1] + 1 < 0.9 * T:
        logger.warning(
            f"`timestep_spacing` {spacing!r} with {N} steps starts at timestep {ascending[-1]} of {T}, but samples "
            "start as pure noise; 'trailing' starts at the last timestep."
        )
    return ascending[::-1]


def _as_timesteps(timesteps, num_train_timesteps: int) -> np.ndarray:
    if isinstance(timesteps, torch.Tensor):
        timesteps = timesteps.cpu()
    try:
        grid = np.asarray(timesteps)
    except ValueError:  # lists of several lengths
        raise TypeError(f"`timesteps` must be a list of at least one integer, but is {timesteps!r}.") from None
    if grid.ndim != 1 or grid.size == 0 or not np.issubdtype(grid.dtype, np.integer):
        raise TypeError(f"`timesteps` must be a list of at least one integer, but is {timesteps!r}.")
    grid = grid.astype(np.int64)
    if grid.max() >= num_train_timesteps or grid.min() < 0:
        raise ValueError(f"`timesteps` must be in 0..{num_train_timesteps - 1}, but are {grid.tolist()}.")
    if (np.diff(grid) >= 0).any():
        raise ValueError(f"`timesteps` must be strictly decreasing, but are {grid.tolist()}.")
    return grid


# ------------------------------------------------------------------------------------------------------------- helpers


def _prediction_coefficients(prediction_type: str, alpha_t: Any, sigma_t: Any) -> tuple[Any, Any, Any, Any]:
    """p, q, r, w of x_0 = p x_t + q m and eps = r x_t + w m, from x_t = alpha_t x_0 + sigma_t eps."""
    if prediction_type == "epsilon":
        return 1 / alpha_t, -sigma_t / alpha_t, 0.0, 1.0
    if prediction_type == "sample":
        return 0.0, 1.0, 1 / sigma_t, -alpha_t / sigma_t
    if prediction_type == "v_prediction":
        return alpha_t, -sigma_t, sigma_t, alpha_t
    raise ValueError(f"`prediction_type` must be one of {PREDICTION_TYPES}, but is {prediction_type!r}.")


# A factor below is a float, or a tensor that broadcasts over the samples; either gives the same bits.


def _times(x: torch.Tensor, a: Any) -> torch.Tensor:
    return x * (a.to(x.dtype) if isinstance(a, torch.Tensor) else a)


def _times_(x: torch.Tensor, a: Any) -> torch.Tensor:
    """_times in place."""
    return x.mul_(a.to(x.dtype) if isinstance(a, torch.Tensor) else a)


def _add(x: torch.Tensor, a: Any, y: torch.Tensor) -> torch.Tensor:
    """x + a y, rounded once."""
    return torch.addcmul(x, y, a.to(x.dtype)) if isinstance(a, torch.Tensor) else torch.add(x, y, alpha=a)


def _add_(x: torch.Tensor, a: Any, y: torch.Tensor) -> torch.Tensor:
    """_add in place."""
    return x.addcmul_(y, a.to(x.dtype)) if isinstance(a, torch.Tensor) else x.add_(y, alpha=a)


def _quantile(values: torch.Tensor, q: float) -> torch.Tensor:
    """The quantile of each row, from its largest values: `torch.quantile` refuses more than 2^24 elements."""
    rank = q * (values.shape[1] - 1)
    low, weight = math.floor(rank), rank - math.floor(rank)
    largest = values.topk(values.shape[1] - low, dim=1).values
    return torch.lerp(largest[:, -1], largest[:, -2 if weight else -1], weight)


def _computing_dtype(sample: torch.Tensor) -> torch.dtype:
    return torch.float64 if sample.dtype == torch.float64 else torch.float32


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)  # a call of `to` costs as much as an operator


def _to_device(tensor: torch.Tensor, device: str | torch.device | None) -> torch.Tensor:
    """Moves a tensor without making the host wait. MPS has no float64."""
    if device is None:
        return tensor
    device = torch.device(device)
    if device.type == "mps" and tensor.is_floating_point():
        tensor = tensor.float()
    return tensor.to(device, non_blocking=device.type == "cuda")


def _is_on_host(timestep: int | torch.Tensor) -> bool:
    """Whether the value of a timestep can be read at once, outside a compiled graph."""
    if torch.compiler.is_compiling():
        return False
    return not isinstance(timestep, torch.Tensor) or (timestep.is_cpu and timestep.numel() == 1)


def _split_variance(model_output: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    channels = sample.shape[1]
    if model_output.shape != (len(sample), 2 * channels, *sample.shape[2:]):
        raise ValueError(
            f"`model_output` must have twice the channels of the sample of shape {tuple(sample.shape)} for a learned "
            f"variance, but has shape {tuple(model_output.shape)}."
        )
    return model_output[:, :channels], model_output[:, channels:]


def _learned_std(variance: torch.Tensor, row: _Row, variance_type: str) -> torch.Tensor:
    """The std from the model's second half (eq. (15) of https://arxiv.org/abs/2102.09672); 0 on the step to x_0."""
    variance = variance.to(torch.promote_types(variance.dtype, torch.float32))
    std, fresh_std = (
        v.to(variance.dtype) if isinstance(v, torch.Tensor) else variance.new_full((), v)
        for v in (row.std, row.fresh_std)
    )
    if variance_type == "learned":
        learned = torch.exp(variance / 2)
    else:
        weight = (variance + 1) / 2
        learned = torch.exp(weight * fresh_std.clamp(min=1e-20).log() + (1 - weight) * std.clamp(min=1e-20).log())
    return torch.where(std > 0, learned, torch.zeros_like(learned))


def _arguments_of_other_scheduler(config: dict[str, Any], cls: type) -> dict[str, Any]:
    """The arguments and defaults of the scheduler behind a config; none if that was written by hand for `cls`."""
    class_name = str(config.get("_class_name"))
    other = cls if class_name == cls.__name__ else getattr(diffusers, class_name, None)
    # a class whose optional package is missing is a stand-in that takes anything
    if isinstance(other, type) and issubclass(other, SchedulerMixin):
        return {name: parameter.default for name, parameter in inspect.signature(other).parameters.items()}
    # `scheduler.config` has no class name before it was saved, but holds every argument
    own_keys = inspect.signature(cls).parameters.keys()
    return dict(config) if isinstance(config, FrozenDict) or config.keys() - own_keys else {}


# -------------------------------------------------------------------------------------------------------------- checks


def _check_choice(name: str, value: Any, choices: tuple):
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, but is {value!r}.")


def _check_bool(name: str, value: Any):
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, but is {value!r}.")


def _check_int(name: str, value: Any, low: int, high: int | None = None):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an integer, but is {value!r}.")
    if value < low or (high is not None and value > high):
        raise ValueError(f"`{name}` must be {f'in {low}..{high}' if high else f'at least {low}'}, but is {value!r}.")


def _python_number(value: Any) -> Any:
    """A numpy scalar as the number it holds; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _check_number(name: str, value: Any, low: float, high: float = math.inf, open_interval: bool = False):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a number, but is {value!r}.")
    inside = low < value < high if open_interval else low <= value <= high
    if not inside or abs(value) == math.inf:
        interval = f"({low}, {high})" if open_interval else f"[{low}, {high}]"
        raise ValueError(f"`{name}` must be finite and in {interval}, but is {value!r}.")


def _check_eta(eta: torch.Tensor, sample: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One or B values of eta, shaped for the sample. Their range is checked where that makes nobody wait."""
    if eta.is_complex() or eta.numel() not in (1, len(sample)):
        raise ValueError(f"`eta` must hold one value or one for each of the {len(sample)} samples, but is {eta!r}.")
    if eta.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = [value for value in eta.flatten().tolist() if not 0 <= value <= 1]
        if bad:
            raise ValueError(f"`eta` must be in [0, 1], but holds {bad}.")
    return _to_device(eta, sample.device).to(dtype).view(-1, *(1,) * (sample.ndim - 1))


def _check_floating(name: str, tensor: Any):
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, torch.Tensor) else repr(tensor)
        raise TypeError(f"`{name}` must be a floating point tensor, but is {kind}.")


def _check_step_arguments(model_output, sample, generator=None, variance_noise=None):
    _check_floating("model_output", model_output)
    _check_floating("sample", sample)
    if generator is None and variance_noise is None:
        return
    if generator is not None and variance_noise is not None:
        raise ValueError("`generator` and `variance_noise` cannot both be given: the noise has one source.")
    generators = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(g, torch.Generator) for g in generators):
        raise TypeError(f"`generator` must be a torch.Generator or a list of them, but is {generator!r}.")
    if isinstance(generator, list) and len(generator) != len(sample):
        raise ValueError(
            f"`generator` must hold one for each of the {len(sample)} samples, but holds {len(generator)}."
        )
    if variance_noise is None:
        return
    _check_floating("variance_noise", variance_noise)
    if variance_noise.shape != sample.shape:
        raise ValueError(
            f"`variance_noise` must have the sample's shape {tuple(sample.shape)}, but has "
            f"{tuple(variance_noise.shape)}."
        )
