# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The step of a flow matching model by the built-in's arguments, the short way of most calls, and steps of tokens."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

from .arithmetic import add, add_, cast, computing_dtype
from .flow_path import FlowPath, Tokens
from .steps import Transition, direction_and_std, linear, mean_factors, noise_like, prediction_coefficients
from .validation import check_floating, check_generator, check_same_shape


@dataclass
class EtaFlowMatchSchedulerOutput(FlowMatchEulerDiscreteSchedulerOutput):
    """
    Args:
        prev_sample (`torch.Tensor`): x_s.
        pred_original_sample (`torch.Tensor`): The predicted x_0.
    """

    pred_original_sample: torch.Tensor | None = None


class FlowSteps(FlowPath):
    """`step`, `transition` and `noise_between` of `EtaSteps` for a flow matching model."""

    generator: torch.Generator | list[torch.Generator] | None  # of the noise where a step is given none

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
        check_generator(generator)
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        state = sample = cast(sample, dtype)
        if dtype != torch.float32 or model_output.dtype != torch.float32:
            computing = computing_dtype(sample)
            sample, model_output = cast(sample, computing), cast(model_output, computing)
        if eta == 0:  # Euler's step
            return cast(add(sample, self._slopes[index], model_output), dtype)
        row = self._table.row(index)
        direction, std = direction_and_std(row, eta, math.sqrt)
        coefficients = prediction_coefficients(self._prediction_type, row.alpha_t, row.sigma_t)
        mean = linear(sample, model_output, *mean_factors(row.alpha_s, direction, *coefficients))
        return cast(add_(mean, std, cast(noise_like(state, generator), mean.dtype)), dtype)

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
        The z with which `step(..., variance_noise=z)` goes from `sample` to `prev_sample`, of its shape, float32 at
        least; 0 where the std is 0. Arguments and errors are those of `step`.
        """
        check_floating("prev_sample", prev_sample)
        check_same_shape("prev_sample", prev_sample, "sample", sample)
        return self.transition(model_output, timestep, sample, eta, per_token_timesteps).noise_of(prev_sample)


def _with_tokens(
    model_output: torch.Tensor, timestep: Any, per_token_timesteps: torch.Tensor | None
) -> tuple[torch.Tensor, Any]:
    """The model output and what tells the levels. With timesteps of its tokens, a pipeline gives -u."""
    if per_token_timesteps is None:
        return model_output, timestep
    if not isinstance(per_token_timesteps, torch.Tensor):
        raise TypeError(f"`per_token_timesteps` must be a tensor, but is {per_token_timesteps!r}.")
    return -model_output, Tokens(per_token_timesteps)
