# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Flow matching (https://arxiv.org/abs/2210.02747, rectified flow https://arxiv.org/abs/2209.03003) with DDIM's eta, as a
diffusers scheduler: x_t = (1 - sigma_t) x_0 + sigma_t eps, of which the model returns the velocity u = eps - x_0.

The equations of a step are in `steps.py`; `flow_path.py` makes the table of their coefficients, `flow_steps.py` has the
arguments of a step. The grids and their shifts are diffusers' own.

This file travels with a model: it and what it imports need diffusers, huggingface_hub, numpy and torch alone.
"""

import inspect
import math
from typing import Any, Literal

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config

from .fitted_tables import FittedTable, check_tables, fitted_table
from .flow_steps import FlowSteps
from .foreign_configs import adapt_flow_config
from .multistep import MAX_ORDER, History
from .sharing import SCHEDULER_ENTRY, SharedScheduler
from .travelling import travelling_code
from .validation import check_bool, check_choice, check_integer, check_number

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


class EtaFlowMatchScheduler(SharedScheduler, FlowSteps, FlowMatchEulerDiscreteScheduler):
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
            for t in table["timesteps"]:
                check_number(f"fitted_tables[{key!r}]['timesteps']", t, 0, config.num_train_timesteps)
        if config.stochastic_sampling and "eta" in config.get("_use_default_values", []):
            config.put("eta", 1.0)
        if config.get("sigma_max") is not None:
            check_number("sigma_max", config["sigma_max"], 0.0, math.inf, True)
        if config.get("flow_shift", config.shift) != config.shift:  # that of UniPC, for its next reader
            config.put("flow_shift", config.shift)

    def _blank(self):
        """A copy without a grid, on which diffusers' methods may set one: nothing is followed there, nor refused."""
        blank, followed = type(self).__new__(type(self)), ("_published", *self._live_tensors, *self._live_numbers)
        blank.__dict__.update({name: value for name, value in self.__dict__.items() if name not in followed})
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
            ValueError: If `config` is that of a scheduler with betas, without flow matching, or of a model that returns
                no velocity, or holds an invalid value.
        """
        if "flow_shift" in kwargs:  # as for UniPC and DPM
            kwargs.setdefault("shift", kwargs.pop("flow_shift"))
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
            array = np.asarray(mu.detach().cpu() if isinstance(mu, torch.Tensor) else mu)
            mu = check_number("mu", array.item() if array.size == 1 else mu)
        sigmas, timesteps = _as_levels("sigmas", sigmas), _as_levels("timesteps", timesteps)
        if self.config.use_fitted_sigmas:
            given = (len(values) for values in (sigmas, timesteps) if values is not None)
            self._set_fitted(num_inference_steps or next(given), device)
            return

        maker = self._blank()
        try:
            with np.errstate(divide="ignore", invalid="ignore"):  # the grid is checked
                FlowMatchEulerDiscreteScheduler.set_timesteps(maker, num_inference_steps, None, sigmas, mu, timesteps)
        except (ArithmeticError, ValueError) as error:
            arguments = {"num_inference_steps": num_inference_steps, "sigmas": sigmas, "mu": mu, "timesteps": timesteps}
            shown = ", ".join(f"`{name}` {value}" for name, value in arguments.items() if value is not None)
            raise ValueError(f"{error}: no grid can be made of {shown}.") from error
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

    def set_shift(self, shift: float):
        """Sets the shift of the next grid, in the place of the config's."""
        super().set_shift(check_number("shift", shift, *CHECKS["shift"][1:]))

    def set_begin_index(self, begin_index: int = 0):
        """Says at which place of the grid the next loop begins, as pipelines do that start from an image."""
        begin_index = check_integer("begin_index", begin_index, 0)
        super().set_begin_index(begin_index)
        self.__dict__["_history"] = History(begin_index)

    def index_for_timestep(self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None) -> int:
        """The index of a timestep in `timesteps`; a `schedule_timesteps` must be these."""
        self._follow()
        if schedule_timesteps is not None and self._is_written("timesteps", schedule_timesteps):
            raise ValueError("`schedule_timesteps` must be the scheduler's `timesteps`.")
        return self._host_index(timestep)

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """Returns the sample as it is. Bria asks for it from all but the built-in class itself."""
        return sample


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
