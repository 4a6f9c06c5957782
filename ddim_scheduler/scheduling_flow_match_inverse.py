# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Flow matching towards noise: the step of `scheduling_flow_match.py` at eta = 0 solved for x_t.

This file travels with a model: it and what it imports need diffusers, huggingface_hub, numpy and torch alone.
"""

from typing import Any

import torch

from .arithmetic import add, cast, computing_dtype
from .flow_steps import EtaFlowMatchSchedulerOutput
from .scheduling_flow_match import EtaFlowMatchScheduler
from .sharing import SCHEDULER_ENTRY
from .travelling import travelling_code
from .validation import check_floating, check_same_shape


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
    _code = travelling_code(__name__, SCHEDULER_ENTRY)
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
