# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
DDIM towards noise: the equation (12) of `scheduling_ddim.py` solved for x_t.

This file travels with a model: it and what it imports need diffusers, huggingface_hub, numpy and torch alone.
"""

import numpy as np
import torch
from diffusers import DDIMInverseScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from .arithmetic import cast, computing_dtype
from .scheduling_ddim import EtaDDIMScheduler
from .sharing import SCHEDULER_ENTRY
from .steps import prediction_coefficients
from .travelling import travelling_code
from .validation import check_floating


class EtaDDIMInverseScheduler(EtaDDIMScheduler, DDIMInverseScheduler):
    r"""
    Walks the grid of `EtaDDIMScheduler` towards noise: a drop-in for diffusers' `DDIMInverseScheduler`, made by
    `EtaDDIMInverseScheduler.from_config(pipe.scheduler.config)`.

    `timesteps` are those of the sampler in ascending order, for every spacing and for custom timesteps, which are given
    in decreasing order, as to the sampler. All arguments are those of `EtaDDIMScheduler`; eta and what goes with it are
    not used, nor is a history: the order is 1. `transition`, `log_prob`, `noise_between` and `previous_timestep` are
    the sampler's: they begin at `timestep`, where a `step` of this class ends.
    """

    __module__ = EtaDDIMScheduler.__module__
    _code = travelling_code(__name__, SCHEDULER_ENTRY)
    _is_multistep = False

    @property
    def initial_alpha_cumprod(self) -> torch.Tensor:
        """The level that the first step starts from, as `DDIMInverseScheduler` calls it."""
        return self.final_alpha_cumprod

    def _set_grid(self, grid: np.ndarray, device: str | torch.device | None, timesteps: torch.Tensor | None = None):
        super()._set_grid(grid[::-1] if timesteps is None else grid, device, timesteps)

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
        check_floating("model_output", model_output)
        check_floating("sample", sample)
        t, dtype, prediction_type = self._check_timestep(timestep), computing_dtype(sample), self.config.prediction_type
        model_output = cast(self._split_output(model_output, sample)[0], dtype)

        # 1. the sampler's step is x_s = a x_t + b m, where m is the model output
        alpha_t, sigma_t, alpha_s, sigma_s, *_ = self._row_of(t)
        p, q, r, w = prediction_coefficients(prediction_type, alpha_t, sigma_t)
        a, b = alpha_s * p + sigma_s * r, alpha_s * q + sigma_s * w
        if a == 0:
            raise ValueError(
                f"`prediction_type` {prediction_type!r} cannot be inverted at timestep {t}: the sampler's step "
                "from there does not depend on the sample."
            )
        x_s = cast(sample, dtype)
        next_sample = (x_s - b * model_output) / a

        # 2. eps from x_t and m, x_0 from x_s = alpha_s x_0 + sigma_s eps; x_0 is thresholded or clipped
        epsilon = r * next_sample + w * model_output
        pred_original_sample = (x_s - sigma_s * epsilon) / alpha_s
        pred_original_sample, is_constrained = self._constrained(pred_original_sample)
        if is_constrained:
            next_sample = alpha_t * pred_original_sample + sigma_t * epsilon

        next_sample, pred_original_sample = cast(next_sample, sample.dtype), cast(pred_original_sample, sample.dtype)
        if not return_dict:
            return next_sample, pred_original_sample
        return DDIMSchedulerOutput(prev_sample=next_sample, pred_original_sample=pred_original_sample)
