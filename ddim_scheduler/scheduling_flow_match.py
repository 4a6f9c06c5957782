# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Flow matching (https://arxiv.org/abs/2210.02747, rectified flow https://arxiv.org/abs/2209.03003) with DDIM's eta, as a
diffusers scheduler: x_t = (1 - sigma_t) x_0 + sigma_t eps, of which the model returns the velocity u = eps - x_0.

The equations of a step are in `steps.py`; `flow_path.py` makes the table of their coefficients. The grids and their
shifts are diffusers' own. This file travels with a model: it and what it imports need diffusers, huggingface_hub, numpy
and torch alone.
"""

import copy
import inspect
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from .arithmetic import add, add_, cast, computing_dtype
from .fitted_tables import FittedTable, check_tables, fitted_table
from .flow_path import FlowPath, Tokens
from .foreign_configs import adapt_flow_config
from .multistep import MAX_ORDER, History
from .sharing import SCHEDULER_ENTRY, SharedScheduler
from .steps import Transition, direction_and_std, linear, mean_factors, prediction_coefficients
from .travelling import travelling_code
from .validation import (
    check_bool,
    check_choice,
    check_floating,
    check_generator,
    check_integer,
    check_number,
    check_same_shape,
)

MAX_TRAIN_TIMESTEPS = 1_000_000
# what the built-in's constructor makes the training's levels of
LEVEL_KEYS = ("num_train_timesteps", "shift", "use_dynamic_shifting")
# what each entry of the config must be, but for those that may be None: a check, and its arguments
CHECKS: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (check_integer, 1, MAX_TRAIN_TIMESTEPS),
    "shift": (check_number, 0.0, math.inf, True),
    "use_dynamic_shifting": (check_bool,),
    "base_shift": (check_number,),
    "max_shift": (check_number,),
    "base_image_seq_len": (check_integer,),
    "max_image_seq_len": (check_integer,),
    "invert_sigmas": (check_bool,),
    "shift_terminal": (check_number, 0.0, 1.0),
    "use_karras_sigmas": (check_bool,),
    "use_exponential_sigmas": (check_bool,),
    "use_beta_sigmas": (check_bool,),
    "time_shift_type": (check_choice, ("exponential", "linear")),
    "stochastic_sampling": (check_bool,),
    "eta": (check_number, 0.0, 1.0),
    "solver_order": (check_integer, 1, MAX_ORDER),
    "use_fitted_sigmas": (check_bool,),
}
MAY_BE_NONE = ("base_shift", "max_shift", "shift_terminal")


@dataclass
class EtaFlowMatchSchedulerOutput(FlowMatchEulerDiscreteSchedulerOutput):
    """
    Args:
        prev_sample (`torch.Tensor`): x_s.
        pred_original_sample (`torch.Tensor`): The predicted x_0.
    """

    pred_original_sample: torch.Tensor | None = None


class EtaFlowMatchScheduler(SharedScheduler, FlowPath, FlowMatchEulerDiscreteScheduler):
    r"""
    DDIM's family of steps for flow matching models (SD3, Flux, Qwen-Image, Wan, LTX...): eta = 0 is Euler's step, eta =
    1 draws from the posterior of the Markov chain on the path, and every eta keeps the noise level of each timestep.

    A drop-in for diffusers' `FlowMatchEulerDiscreteScheduler`, with its grids to the bit: `pipe.scheduler =
    EtaFlowMatchScheduler.from_config(pipe.scheduler.config, eta=0.5)`. `step` is told its timestep and changes nothing
    in the scheduler. What is written into `sigmas`, `timesteps` or the config takes effect, or is an error.

    Pipelines for flow models seldom give `step` a generator. Then the noise comes from the attribute `generator`, which
    is None, torch's global one, unless it is set. Take another seed for it than for the latents of the call: one that
    begins with the same seed draws the latents again as its first noise.

    Args:
        num_train_timesteps (`int`, defaults to 1000):
            T; the timestep of the noise level sigma is sigma T.
        shift (`float`, defaults to 1.0):
            Moves the noise levels up: shift sigma / (1 + (shift - 1) sigma), positive.
        use_dynamic_shifting (`bool`, defaults to `False`):
            Whether the shift comes with each `set_timesteps(mu=...)` instead.
        base_shift (`float`, defaults to 0.5):
            Read by pipelines, as are the next three: mu at `base_image_seq_len` tokens.
        max_shift (`float`, defaults to 1.15):
            mu at `max_image_seq_len` tokens.
        base_image_seq_len (`int`, defaults to 256):
            Number of tokens.
        max_image_seq_len (`int`, defaults to 4096):
            Number of tokens.
        invert_sigmas (`bool`, defaults to `False`):
            `sigmas` and `timesteps` are those of 1 - sigma, and the model returns x_0 - eps (Mochi, OmniGen).
        shift_terminal (`float`, *optional*):
            Stretches the levels so that the last one is this, in [0, 1].
        use_karras_sigmas (`bool`, defaults to `False`):
            Karras' spacing of the levels.
        use_exponential_sigmas (`bool`, defaults to `False`):
            Exponential spacing.
        use_beta_sigmas (`bool`, defaults to `False`):
            Spacing by the beta distribution; needs scipy. Only one of the three.
        time_shift_type (`str`, defaults to `"exponential"`):
            What mu means: `"exponential"` or `"linear"`.
        stochastic_sampling (`bool`, defaults to `False`):
            At eta = 1, which is the default then, draw all of the noise anew: x_s = alpha_s x_0 + sigma_s z. It keeps
            the noise levels but does not converge to the data with the number of steps; it is for distilled models.
        eta (`float`, defaults to 0.0):
            The eta of a `step` that is not given one, in [0, 1].
        solver_order (`int`, defaults to 1):
            1: Euler's step at eta = 0. 2 and 3: a step is extrapolated from one or two before it, by the weights of
            iPNDM on x_0 (https://arxiv.org/abs/2202.09778). Then the scheduler keeps a history, which belongs to one
            loop.
        fitted_tables (`dict`, *optional*):
            Samplers that `fit_sampler` fitted to the model, by their numbers of steps.
        use_fitted_sigmas (`bool`, defaults to `False`):
            Whether `set_timesteps` takes the levels and weights of `fitted_tables`, for the number of steps that it is
            given, in the place of all others, those that pipelines give included.

    Raises:
        ValueError, TypeError: For any argument out of its range or of a wrong type; the message names it.
    """

    __module__ = "ddim_scheduler"  # as that of EtaDDIMScheduler
    _code = travelling_code(__name__, SCHEDULER_ENTRY)
    _compatibles = [
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "UniPCMultistepScheduler",
        "DPMSolverMultistepScheduler",
    ]
    init_noise_sigma = 1.0  # of the samples that a loop starts from, as the DDIM schedulers have it
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: Literal["exponential", "linear"] = "exponential",
        stochastic_sampling: bool = False,
        eta: float = 0.0,
        solver_order: int = 1,
        fitted_tables: dict[str, FittedTable] | None = None,
        use_fitted_sigmas: bool = False,
    ):
        self.generator: torch.Generator | list[torch.Generator] | None = None
        self._check_config()
        self._make_levels()

    def _check_config(self):
        """Checks every entry of the config, and makes plain Python numbers of them."""
        config = self.config
        for name, (check, *limits) in CHECKS.items():
            given = config[name]
            if given is None and name in MAY_BE_NONE:
                continue
            value = check(name, False if check is check_bool and given is None else given, *limits)
            if value is not given:
                config.put(name, value)
        for key, table in (check_tables(config.fitted_tables) or {}).items():
            if table["prediction_type"] != "flow_prediction":
                raise ValueError(
                    f"`fitted_tables[{key!r}]` was fitted to a model with `prediction_type` "
                    f"{table['prediction_type']!r}, and this is for flow matching."
                )
        if config.stochastic_sampling and "eta" in config.get("_use_default_values", []):
            config.put("eta", 1.0)
        if config.get("flow_shift", config.shift) != config.shift:  # that of UniPC, for its next reader
            config.put("flow_shift", config.shift)

    def _blank(self):
        """A copy without a grid, on which diffusers' methods may set one: nothing is followed there, nor refused."""
        blank = copy.copy(self)
        for name in ("_published", *self._live_tensors, *self._live_numbers):
            blank.__dict__.pop(name, None)
        return blank

    def _make_levels(self):
        """The levels of the training, by the built-in's constructor, and what it keeps for `set_timesteps`."""
        config, maker = self.config, self._blank()
        arguments = {key: config[key] for key in inspect.signature(FlowMatchEulerDiscreteScheduler).parameters}
        inspect.unwrap(FlowMatchEulerDiscreteScheduler.__init__)(maker, **arguments)
        made = maker.__dict__
        if self.__dict__.get("num_inference_steps") is None:
            sigmas, timesteps = (self._in_denoising_order(made[name]) for name in self._live_tensors)
            self._set_grid(sigmas, timesteps, None)
        names = ("sigma_min", "sigma_max", "_shift", "_step_index", "_begin_index")
        self.__dict__.update({name: made[name] for name in names})
        self._level_entries = [config[key] for key in LEVEL_KEYS]

    def _take_over(self, name: str, value: Any):
        if name == "config":
            self._check_config()
            if [value[key] for key in LEVEL_KEYS] != self._level_entries:
                self._make_levels()
        super()._take_over(name, value)

    def _set_config(self, config: Any):
        super()._set_config(config)
        if config.get("use_flow_sigmas"):
            # The entry is for UniPC or DPM, which may read this config again. Pipelines ask the attribute, for whether
            # this scheduler has spacings of its own, which would replace theirs.
            self._internal_dict.__dict__["use_flow_sigmas"] = False

    @classmethod
    def from_config(cls, config: dict[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any):
        """
        Makes a scheduler from the config of this or another scheduler of flow matching.

        The `flow_shift` of UniPC and DPM becomes the `shift`. The entries that only they know stay in the config, so
        that it can be read by them again.

        Args:
            config (`dict`): A scheduler's `config`, or the content of a `scheduler_config.json`.
            return_unused_kwargs (`bool`, defaults to `False`): Also return the entries that were not used.
            kwargs: Arguments of the constructor; they replace the config's.

        Raises:
            TypeError: If `config` is not a dictionary.
            ValueError: If `config` is that of a scheduler with betas or without flow matching, or holds an invalid
                value.
        """
        if not isinstance(config, dict):
            raise TypeError(f"`config` must be a dictionary of scheduler arguments, but is {config!r}.")
        return super().from_config(adapt_flow_config(config, cls), return_unused_kwargs, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | np.ndarray | torch.Tensor | None = None,
        mu: float | None = None,
        timesteps: list[float] | np.ndarray | torch.Tensor | None = None,
    ):
        """
        Sets the grid for sampling, that of diffusers to the bit: `self.timesteps` of N values and `self.sigmas` of
        N + 1, float32.

        Args:
            num_inference_steps (`int`, *optional*):
                Number N of steps, at least 1.
            device (`str` or `torch.device`, *optional*):
                Where both, and the coefficients that go with them, are put.
            sigmas (`list[float]`, *optional*):
                N noise levels, before the shift, instead of evenly spaced ones.
            mu (`float`, *optional*):
                The shift, with `use_dynamic_shifting`.
            timesteps (`list[float]`, *optional*):
                N timesteps. Without `sigmas`, the noise levels are timesteps / T, shifted.

        Raises:
            ValueError, TypeError: If none of the three is given or their lengths differ, if `mu` is missing, or if the
                grid that they make is not strictly decreasing, from noise to data, with levels in [0, 1].
        """
        self._follow()
        if num_inference_steps is None and sigmas is None and timesteps is None:
            raise ValueError("One of `num_inference_steps`, `sigmas` and `timesteps` must be given.")
        if num_inference_steps is not None:
            num_inference_steps = check_integer("num_inference_steps", num_inference_steps, 1)
        if mu is not None:
            mu = check_number("mu", mu.item() if isinstance(mu, torch.Tensor) else mu)
        sigmas, timesteps = _as_levels("sigmas", sigmas), _as_levels("timesteps", timesteps)
        if self.config.use_fitted_sigmas:
            given = (len(values) for values in (sigmas, timesteps) if values is not None)
            self._set_fitted(num_inference_steps or next(given), device)
            return

        maker = self._blank()
        with np.errstate(divide="ignore", invalid="ignore"):  # the grid is checked
            FlowMatchEulerDiscreteScheduler.set_timesteps(maker, num_inference_steps, None, sigmas, mu, timesteps)
        made = [self._in_denoising_order(maker.__dict__[name]) for name in self._live_tensors]
        self._set_grid(made[0], made[1], len(made[1]), device)
        self._begin_grid()

    def _set_fitted(self, num_inference_steps: int, device: Any):
        table = fitted_table(self.config.fitted_tables, num_inference_steps, "use_fitted_sigmas")
        sigmas, timesteps = (torch.tensor(values).float() for values in (table["sigmas"], table["timesteps"]))
        if self.config.invert_sigmas:
            sigmas = 1 - sigmas
        sigmas, timesteps = self._in_denoising_order(sigmas), self._in_denoising_order(timesteps)
        self._set_grid(sigmas, timesteps, num_inference_steps, device)
        self._begin_grid(table["weights"])

    def set_begin_index(self, begin_index: int = 0):
        """Says at which place of the grid the next loop begins, as pipelines do that start from an image."""
        super().set_begin_index(begin_index)
        self.__dict__["_history"] = History(check_integer("begin_index", begin_index, 0))

    # -------------------------------------------------------------------------------------------------------- the step

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
        eta: float | torch.Tensor | None = None,
        variance_noise: torch.Tensor | None = None,
    ) -> EtaFlowMatchSchedulerOutput | tuple[torch.Tensor]:
        """
        Draws x_s from `p(x_s | x_t)`. The arithmetic is float32 at least; the result's dtype is the promotion of those
        of `sample` and `model_output`, so that a float32 state stays one.

        Args:
            model_output (`torch.Tensor` of the sample's shape):
                u, what the model returned for `sample` at `timestep`.
            timestep (`float` or `torch.Tensor`):
                t, of `timesteps`; a tensor, float32 or float64, has one element or B. One that is nearer to a t of the
                grid than 1e-6 T is that. A tensor on an accelerator is not checked, since that would make the host
                wait: it is the nearest.
            sample (`torch.Tensor` of shape `(B, ...)`):
                x_t, floating point.
            s_churn, s_tmin, s_tmax, s_noise (`float`):
                Have no effect in the built-in, and must be left as they are.
            generator (`torch.Generator` or a list of B, *optional*):
                Source of the noise; the attribute `generator` if not given.
            per_token_timesteps (`torch.Tensor` of shape `(B, L)`, *optional*):
                For a sample of shape `(B, L, C)`, the timestep of each token, instead of `timestep`: a token goes from
                t / T to the next lower level of the grid. `model_output` is -u then, as in the built-in.
            return_dict (`bool`, defaults to `True`):
                Whether to return an `EtaFlowMatchSchedulerOutput` or a tuple of x_s alone.
            eta (`float` or `torch.Tensor` of one or B elements, *optional*):
                In [0, 1]; `config.eta` if not given. A float 0 draws no random numbers.
            variance_noise (`torch.Tensor` of the sample's shape, *optional*):
                The noise itself, instead of a generator.

        Returns:
            `EtaFlowMatchSchedulerOutput` or `tuple`: `prev_sample` (x_s) and `pred_original_sample` (x_0), or x_s.

        Raises:
            ValueError, TypeError: If `set_timesteps` was not called, or for an argument of wrong value, shape or type.
        """
        if s_churn != 0 or s_tmin != 0 or s_tmax != math.inf or s_noise != 1:
            raise ValueError(
                "`s_churn`, `s_tmin`, `s_tmax` and `s_noise` have no effect, nor in diffusers, and must be left out, "
                f"but are {s_churn!r}, {s_tmin!r}, {s_tmax!r} and {s_noise!r}: `eta` is what adds noise."
            )
        check_floating("model_output", model_output)
        check_floating("sample", sample)
        if generator is None and variance_noise is None:
            generator = self.generator
        if not return_dict and per_token_timesteps is None and variance_noise is None and not self._is_multistep:
            prev_sample = self._short_step(model_output, timestep, sample, generator, eta)
            if prev_sample is not None:
                return (prev_sample,)
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        model_output, timestep = _with_tokens(model_output, timestep, per_token_timesteps)
        prev_sample, pred_original_sample = super().step(
            model_output, timestep, cast(sample, dtype), eta, None, generator, variance_noise, return_dict=False
        )
        if not return_dict:
            return (prev_sample,)
        return EtaFlowMatchSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def _short_step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, generator: Any, eta: Any
    ) -> torch.Tensor | None:
        """x_s without x_0, for a float eta and a timestep that is at hand; None where it must be the long way."""
        self._check_timesteps_are_set()
        if eta is None:
            eta = self.config.eta
        index = self._index_at_hand(timestep)
        if index is None or type(eta) not in (float, int) or not 0 <= eta <= 1:
            return None
        check_same_shape("model_output", model_output, "sample", sample)
        if generator is not None:
            check_generator(generator, len(sample))
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        if dtype != torch.float32 or model_output.dtype != torch.float32:
            sample = cast(sample, dtype)
            computing = computing_dtype(sample)
            sample, model_output = cast(sample, computing), cast(model_output, computing)
        if eta == 0:  # Euler's step
            return cast(add(sample, self._slopes[index], model_output), dtype)
        row = self._table.row(index)
        direction, std = direction_and_std(row, eta, math.sqrt)
        coefficients = prediction_coefficients(self._prediction_type, row.alpha_t, row.sigma_t)
        mean = linear(sample, model_output, *mean_factors(row.alpha_s, direction, *coefficients))
        noise = randn_tensor(sample.shape, generator, sample.device, dtype)
        return cast(add_(mean, std, cast(noise, mean.dtype)), dtype)

    def transition(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        eta: float | torch.Tensor | None = None,
        per_token_timesteps: torch.Tensor | None = None,
    ) -> Transition:
        """
        The Gaussian that `step` draws from; arguments and errors are those of `step`. Differentiable.

        Returns:
            `Transition`: mean and std of `p(x_s | x_t)`, and the predicted x_0. The std is 0 at eta = 0 and on the step
            to x_0.
        """
        check_floating("model_output", model_output)
        check_floating("sample", sample)
        sample = cast(sample, torch.promote_types(sample.dtype, model_output.dtype))
        model_output, timestep = _with_tokens(model_output, timestep, per_token_timesteps)
        return super().transition(model_output, timestep, sample, eta)

    def noise_between(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        prev_sample: torch.Tensor,
        eta: float | torch.Tensor | None = None,
        per_token_timesteps: torch.Tensor | None = None,
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
        check_floating("prev_sample", prev_sample)
        check_same_shape("prev_sample", prev_sample, "sample", sample)
        return self.transition(model_output, timestep, sample, eta, per_token_timesteps).noise_of(prev_sample)

    def index_for_timestep(self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None) -> int:
        """The index of a timestep in `timesteps`; a `schedule_timesteps` must be these."""
        self._follow()
        if schedule_timesteps is not None and self._is_written("timesteps", schedule_timesteps):
            raise ValueError("`schedule_timesteps` must be the scheduler's `timesteps`.")
        return self._host_index(timestep)

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """Returns the sample as it is. Bria asks for it from all but the built-in class itself."""
        return sample


class EtaFlowMatchInverseScheduler(EtaFlowMatchScheduler):
    r"""
    Walks the grid of `EtaFlowMatchScheduler` towards noise: `EtaFlowMatchInverseScheduler.from_config(
    pipe.scheduler.config)`.

    `timesteps` and `sigmas` are those of the sampler the other way round, and the arguments of `set_timesteps` are
    given as to the sampler. eta is not used, nor is a history: the order is 1. `transition`, `log_prob`,
    `noise_between` and `previous_timestep` are the sampler's: they begin at `timestep`, where a `step` of this class
    ends.
    """

    __module__ = EtaFlowMatchScheduler.__module__
    _code = EtaFlowMatchScheduler._code
    _is_multistep = False

    @staticmethod
    def _in_denoising_order(values: Any) -> Any:
        return values.flip(0) if isinstance(values, torch.Tensor) else values[::-1]

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> EtaFlowMatchSchedulerOutput | tuple[torch.Tensor]:
        """
        The x_t from which the sampler's step at eta = 0 with this model output goes to x_s.

        The model output at x_t is not known before x_t is, so pipelines give that of x_s at t; how far this is from the
        truth falls with the step.

        Args:
            model_output (`torch.Tensor` of the sample's shape): What the model returned for `sample` at `timestep`.
            timestep (`float` or `torch.Tensor`): t, where the step ends; as in the sampler's `step`.
            sample (`torch.Tensor` of shape `(B, ...)`): x_s at the next lower timestep of the grid; x_0 at first.
            s_churn, s_tmin, s_tmax, s_noise, generator: Not used; the built-in's places.
            per_token_timesteps (`torch.Tensor`, *optional*): Must be left out.
            return_dict (`bool`, defaults to `True`): As in the sampler's `step`.

        Returns:
            `EtaFlowMatchSchedulerOutput` or `tuple`: `prev_sample` (x_t) and `pred_original_sample` (x_0), or x_t.

        Raises:
            ValueError, TypeError: As `EtaFlowMatchScheduler.step`.
        """
        if per_token_timesteps is not None:
            raise ValueError("`per_token_timesteps` cannot be inverted: leave them out.")
        check_floating("model_output", model_output)
        check_floating("sample", sample)
        check_same_shape("model_output", model_output, "sample", sample)
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        sample = cast(sample, dtype)
        row, *_ = self._row(timestep, 0.0, sample)

        # x_s = x_t + (sigma_s - sigma_t) u, and x_0 = x_t - sigma_t u
        sign = -1 if self._prediction_type == "inverted_flow_prediction" else 1
        computing = computing_dtype(sample)
        x_s, model_output = cast(sample, computing), cast(model_output, computing)
        next_sample = cast(add(x_s, sign * (row.sigma_t - row.sigma_s), model_output), dtype)
        if not return_dict:
            return (next_sample,)
        pred_original_sample = cast(add(x_s, -sign * row.sigma_s, model_output), dtype)
        return EtaFlowMatchSchedulerOutput(prev_sample=next_sample, pred_original_sample=pred_original_sample)


def _with_tokens(
    model_output: torch.Tensor, timestep: Any, per_token_timesteps: torch.Tensor | None
) -> tuple[torch.Tensor, Any]:
    """The model output and what tells the levels. With timesteps of its tokens, a pipeline gives -u."""
    if per_token_timesteps is None:
        return model_output, timestep
    if not isinstance(per_token_timesteps, torch.Tensor):
        raise TypeError(f"`per_token_timesteps` must be a tensor, but is {per_token_timesteps!r}.")
    return -model_output, Tokens(per_token_timesteps)


def _as_levels(name: str, values: Any) -> np.ndarray | None:
    """A list, array or tensor of numbers as the array that diffusers takes."""
    if values is None:
        return None
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values  # numpy has none
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        raise TypeError(f"`{name}` must be a list of numbers, but is {values!r}.") from None
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iuf":
        raise TypeError(f"`{name}` must be a list of at least one number, but is {values!r}.")
    return array
