# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
DDIM (Song, Meng, Ermon 2020, https://arxiv.org/abs/2010.02502) as a diffusers scheduler.

The equations of a step are in `steps.py`; `discrete_path.py` makes the table of their coefficients, in float64, when
the timesteps are set. Beware: `alphas_cumprod[t]` is DDPM's alpha-bar, which the paper calls alpha_t.

This file travels with a model: it and what it imports need diffusers, huggingface_hub, numpy and torch alone.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from .arithmetic import clamp_
from .discrete_path import DiscretePath
from .fitted_tables import FittedTable, check_model, check_tables, fitted_table
from .foreign_configs import MODEL_KEYS, adapt_config
from .multistep import MAX_ORDER, History
from .noise_schedules import (
    BETA_SCHEDULES,
    as_betas,
    log_alphas_cumprod_of,
    named_betas,
    rescale_zero_terminal_snr,
    shift_snr,
)
from .sharing import SCHEDULER_ENTRY, SharedScheduler
from .steps import PREDICTION_TYPES
from .timestep_grids import TIMESTEP_SPACINGS, angle_timesteps, as_timesteps, check_decreasing, spaced_timesteps
from .travelling import travelling_code
from .validation import check_bool, check_choice, check_integer, check_number

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
# What a written config makes the noise schedule anew of. `num_train_timesteps` is read then, but alone it changes only
# the grids, as in diffusers.
SCHEDULE_KEYS = (
    *("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr", "snr_shift_scale"),
    "set_alpha_to_one",
)
# what each entry of the config must be, but for `trained_betas`: a check, and its arguments
CHECKS: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (check_integer, 1, MAX_TRAIN_TIMESTEPS),
    "beta_start": (check_number, 0.0, 1.0, True),
    "beta_end": (check_number, 0.0, 1.0, True),
    "beta_schedule": (check_choice, BETA_SCHEDULES),
    "clip_sample": (check_bool,),
    "set_alpha_to_one": (check_bool,),
    "steps_offset": (check_integer, 0),
    "prediction_type": (check_choice, PREDICTION_TYPES),
    "thresholding": (check_bool,),
    "dynamic_thresholding_ratio": (check_number, 0.0, 1.0),
    "clip_sample_range": (check_number, 0.0, math.inf, True),
    "sample_max_value": (check_number, 1.0),
    "timestep_spacing": (check_choice, (*TIMESTEP_SPACINGS, "fitted")),
    "rescale_betas_zero_snr": (check_bool,),
    "eta": (check_number, 0.0, 1.0),
    "use_clipped_model_output": (check_bool,),
    "variance_type": (check_choice, VARIANCE_TYPES),
    "snr_shift_scale": (check_number, 0.0, math.inf, True),
    "solver_order": (check_integer, 1, MAX_ORDER),
}


class EtaDDIMScheduler(SharedScheduler, DiscretePath, DDIMScheduler):
    r"""
    Denoising diffusion implicit models (https://arxiv.org/abs/2010.02502), for any model that was trained as a DDPM.

    A drop-in for diffusers' `DDIMScheduler`: `pipe.scheduler = EtaDDIMScheduler.from_config(pipe.scheduler.config)`.
    `step` changes nothing in the scheduler, so one scheduler may serve several threads that share a timestep grid. What
    is written into its public attributes or its config takes effect, or is an error.

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
            T betas in [0, 1] instead of a named schedule; they say what T is, if `num_train_timesteps` does not. Stored
            in the config as a list.
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
            smallest is at least i), `"angle"` (even in arctan(sigma / alpha): for few steps and higher orders),
            or `"fitted"` (from `fitted_tables`, with their weights in the place of those of `solver_order`).
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
        solver_order (`int`, defaults to 1):
            1: DDIM. 2 and 3: a step is extrapolated from one or two before it, by the weights of iPNDM on x_0
            (https://arxiv.org/abs/2202.09778). Then the scheduler keeps a history, which belongs to one loop.
        fitted_tables (`dict`, *optional*):
            Samplers that `fit_sampler` fitted to the model, by their numbers of steps.

    Raises:
        ValueError, TypeError: For any argument out of its range or of a wrong type; the message names it.
    """

    # The library that diffusers writes into a model_index.json: the package, and the name of the file which
    # `save_pretrained` writes for those who do not have it. This module is called otherwise in that.
    __module__ = "ddim_scheduler"
    _code = travelling_code(__name__, SCHEDULER_ENTRY)
    _compatibles = [e.name for e in KarrasDiffusionSchedulers]
    _is_ode_scheduler = True  # asked by ParaDiGMS
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
        timestep_spacing: Literal["leading", "trailing", "linspace", "quadratic", "angle", "fitted"] = "leading",
        rescale_betas_zero_snr: bool = False,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        variance_type: str | None = None,
        snr_shift_scale: float = 1.0,
        solver_order: int = 1,
        fitted_tables: dict[str, FittedTable] | None = None,
    ):
        self.init_noise_sigma = 1.0
        self._set_number(None)
        self._check_config()
        self._make_noise_schedule()
        # the rest belongs to the model: a class that reads this config must not put its own defaults there
        self.config.put("_use_default_values", sorted({*self.config.get("_use_default_values", [])} - {*MODEL_KEYS}))

    def _check_config(self):
        """Checks every entry of the config, and makes plain Python numbers of them."""
        config = self.config
        for name, (check, *limits) in CHECKS.items():
            given = config[name]
            value = check(name, False if check is check_bool and given is None else given, *limits)
            if value is not given:
                config.put(name, value)
        check_tables(config.fitted_tables)
        if config.trained_betas is not None:
            betas, num_train_timesteps = as_betas("trained_betas", config.trained_betas), config.num_train_timesteps
            if len(betas) != num_train_timesteps:
                if "num_train_timesteps" not in config.get("_use_default_values", []):
                    raise ValueError(
                        f"`trained_betas` must hold `num_train_timesteps` = {num_train_timesteps} values, but its "
                        f"shape is {betas.shape}."
                    )
                config.put("num_train_timesteps", len(betas))
            if not isinstance(config.trained_betas, list):
                config.put("trained_betas", betas.tolist())

    def _make_noise_schedule(self):
        """Follows the config."""
        config = self.config
        if config.trained_betas is not None:
            betas = np.array(config.trained_betas)
        else:
            betas = named_betas(config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end)
        log_alphas_cumprod = log_alphas_cumprod_of(betas)
        if config.snr_shift_scale != 1:
            log_alphas_cumprod = shift_snr(log_alphas_cumprod, config.snr_shift_scale)
        if config.rescale_betas_zero_snr:
            log_alphas_cumprod = rescale_zero_terminal_snr(log_alphas_cumprod)
        self._written_final = None
        self._set_noise_schedule(log_alphas_cumprod)
        self._schedule_entries = [config[name] for name in SCHEDULE_KEYS]

    def _take_over(self, name: str, value: Any):
        if name != "config":
            super()._take_over(name, value)
            return
        self._check_config()
        if [value[key] for key in SCHEDULE_KEYS] != self._schedule_entries:
            self._make_noise_schedule()
        else:
            check_model(value.fitted_tables, value.prediction_type, self._levels[2])

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
        config, defaults = adapt_config(config, cls, kwargs)
        replaceable = [key for key in defaults if key not in MODEL_KEYS]
        result = super().from_config({**config, "_use_default_values": replaceable}, return_unused_kwargs, **kwargs)
        scheduler = result[0] if return_unused_kwargs else result
        # those that stay remain defaults, for the class that reads this config next
        kept = {key for key in defaults if key in MODEL_KEYS and key in scheduler.config} - kwargs.keys()
        scheduler.config.put("_use_default_values", sorted({*scheduler.config["_use_default_values"], *kept}))
        return result

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
                Number N of steps, 1..T, placed by `config.timestep_spacing`; `"fitted"` takes those in `fitted_tables`.
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
        self._follow()
        config, num_levels, weights = self.config, self._table.length, None
        if timesteps is None:
            num_train_timesteps = check_integer("num_train_timesteps", config.num_train_timesteps, 1, num_levels)
            N = check_integer("num_inference_steps", num_inference_steps, 1, num_train_timesteps)
            if config.timestep_spacing == "fitted":
                table = fitted_table(config.fitted_tables, N)
                grid, weights = as_timesteps(table["timesteps"], num_levels), table["weights"]
            elif config.timestep_spacing == "angle":
                _, alphas, sigmas = self._levels
                grid = angle_timesteps(np.arctan2(sigmas, alphas)[:num_train_timesteps], N)
            else:
                grid = spaced_timesteps(config.timestep_spacing, num_train_timesteps, N, config.steps_offset)
        else:
            grid = as_timesteps(timesteps, num_levels)
            check_decreasing(grid)
        self._check_signal(grid)
        self._set_grid(grid, device)
        self._set_number(len(grid))
        self._begin_grid(weights)

    # -------------------------------------------------------------------------------------------------------- the step

    def _constrained(self, x_0: torch.Tensor) -> tuple[torch.Tensor, bool]:
        config = self.config
        if config.thresholding:
            return self._threshold_sample(x_0), True
        if config.clip_sample:
            return clamp_(x_0, config.clip_sample_range), True
        return x_0, False

    def _threshold_sample(self, sample: torch.Tensor) -> torch.Tensor:
        """Dynamic thresholding of each sample (https://arxiv.org/abs/2205.11487, section 2.3), of any size."""
        threshold = _quantile(sample.abs().flatten(1), self.config.dynamic_thresholding_ratio)
        threshold = threshold.clamp(1, self.config.sample_max_value).view(-1, *(1,) * (sample.ndim - 1))
        return sample.clamp(-threshold, threshold) / threshold

    def batch_step_no_noise(
        self,
        model_output: torch.Tensor,
        timesteps: torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
    ) -> torch.Tensor:
        """
        x_s for samples at timesteps of their own, as `DDIMParallelScheduler` has it for ParaDiGMS
        (https://arxiv.org/abs/2305.16317). It is `step`, which takes these timesteps as well, at eta = 0.

        Returns:
            `torch.Tensor` of the sample's shape and dtype.

        Raises:
            ValueError, TypeError: As `step`; or if `eta` is not 0.
        """
        if eta != 0:
            raise ValueError(f"`eta` must be 0 for a step without noise, but is {eta!r}.")
        return self.step(model_output, timesteps, sample, 0.0, use_clipped_model_output, return_dict=False)[0]

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """Returns the sample as it is: DDIM scales no model input."""
        return sample

    def set_begin_index(self, begin_index: int = 0):
        """
        Says at which place of the grid the next loop begins, as pipelines do that start from an image. Only a step with
        a history needs to know: every other one is told its timestep.
        """
        self.__dict__["_history"] = History(check_integer("begin_index", begin_index, 0))


def _quantile(values: torch.Tensor, q: float) -> torch.Tensor:
    """The quantile of each row, from its largest values: `torch.quantile` refuses more than 2^24 elements."""
    rank = q * (values.shape[1] - 1)
    low, weight = math.floor(rank), rank - math.floor(rank)
    largest = values.topk(values.shape[1] - low, dim=1).values
    return torch.lerp(largest[:, -1], largest[:, -2 if weight else -1], weight)
