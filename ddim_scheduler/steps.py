# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
The algebra of a step: the Gaussian p(x_s | x_t) on a path x_t = alpha_t x_0 + sigma_t eps. It knows neither where the
path comes from nor how a timestep names a place on it.

    here                    paper (2010.02502)          meaning
    --------------------    ------------------------    ------------------------------------------------------------
    alpha_t, sigma_t        sqrt(alpha_t), sqrt(1 - .)  x_t = alpha_t x_0 + sigma_t eps (the paper's alpha is alpha^2)
    t -> s                  tau_i -> tau_{i-1}          the interval of a step
    eta                     eta                         0: deterministic, 1: ancestral sampling (DDPM)
    std                     sigma_t(eta)                standard deviation of the fresh noise, eq. (16)
    direction               sqrt(1 - alpha_s - std^2)   coefficient of eps, eq. (12)
    pred_original_sample    f_theta(x_t)                the predicted x_0, eq. (9)
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from .arithmetic import add, add_, cast, computing_dtype, sum_of_products, times, times_
from .multistep import Multistep
from .step_table import Row
from .validation import check_bool, check_choice, check_floating, check_generator, check_same_shape

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
FLOW_PREDICTION_TYPES = ("flow_prediction", "inverted_flow_prediction")  # eps - x_0, x_0 - eps; alpha + sigma = 1


class Transition(NamedTuple):
    """The Gaussian `p(x_s | x_t)` that a step draws from, float32 at least."""

    mean: torch.Tensor  # of the sample's shape
    std: torch.Tensor  # broadcasts over it
    pred_original_sample: torch.Tensor  # of the sample's shape

    def noise_of(self, prev_sample: torch.Tensor) -> torch.Tensor:
        """The z of `prev_sample` = mean + std z; 0 where the std is 0, since no z matters there."""
        std = self.std
        return torch.where(std > 0, (prev_sample - self.mean) / torch.where(std > 0, std, torch.ones_like(std)), 0.0)


def prediction_coefficients(prediction_type: str, alpha_t: Any, sigma_t: Any) -> tuple[Any, Any, Any, Any]:
    """p, q, r, w of x_0 = p x_t + q m and eps = r x_t + w m, where m is what the model returns for x_t."""
    if prediction_type == "epsilon":
        return 1 / alpha_t, -sigma_t / alpha_t, 0.0, 1.0
    if prediction_type == "sample":
        return 0.0, 1.0, 1 / sigma_t, -alpha_t / sigma_t
    if prediction_type == "v_prediction":
        return alpha_t, -sigma_t, sigma_t, alpha_t
    if prediction_type == "flow_prediction":
        return 1.0, -sigma_t, 1.0, alpha_t
    if prediction_type == "inverted_flow_prediction":
        return 1.0, sigma_t, 1.0, -alpha_t
    choices = PREDICTION_TYPES + FLOW_PREDICTION_TYPES
    raise ValueError(f"`prediction_type` must be one of {choices}, but is {prediction_type!r}.")


def direction_and_std(row: Row, eta: Any, sqrt: Any, is_sigma_hat: bool = False) -> tuple[Any, Any]:
    """
    Coefficient of eps and std of a step: sigma_s^2 - std^2 = (1 - eta^2) sigma_s^2 + (eta direction(1))^2, a sum that
    cannot become negative. The std is None for a float 0.
    """
    if isinstance(eta, float) and eta == 0:
        return row.sigma_s, None
    direction = sqrt((1 - eta * eta) * row.sigma_s * row.sigma_s + eta * eta * row.direction * row.direction)
    return direction, eta * (row.fresh_std if is_sigma_hat else row.std)


def mean_factors(alpha_s: Any, direction: Any, p: Any, q: Any, r: Any, w: Any) -> tuple[Any, Any]:
    """a and b of alpha_s x_0 + direction eps = a x_t + b m."""
    return sum_of_products(alpha_s, p, direction, r), sum_of_products(alpha_s, q, direction, w)


def noise_like(sample: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None) -> torch.Tensor:
    """Fresh noise for a sample, which may have no dimensions. A list holds one generator, or one for each row."""
    if isinstance(generator, list) and len(generator) != 1:
        check_generator(generator, sample.shape[:1].numel())
    noise = randn_tensor(sample.shape or (1,), generator, sample.device, sample.dtype)
    return noise if sample.ndim else noise[0]


def gain_of_x_0(row: Row, direction: Any) -> Any:
    """How much x_0 changes x_s at fixed x_t; 0 for a step that begins without noise, and so ends where it begins."""
    if not isinstance(row.sigma_t, torch.Tensor):
        return row.alpha_s - direction / row.sigma_t * row.alpha_t if row.sigma_t else 0.0
    divisor = torch.where(row.sigma_t > 0, row.sigma_t, 1.0)
    return torch.where(row.sigma_t > 0, row.alpha_s - direction / divisor * row.alpha_t, 0.0)


def linear(sample: torch.Tensor, model_output: torch.Tensor, of_sample: Any, of_output: Any) -> torch.Tensor:
    if isinstance(of_sample, float) and of_sample == 1:
        return add(sample, of_output, model_output)
    return add_(times(sample, of_sample), of_output, model_output)


class EtaSteps(Multistep):
    """
    `step`, `transition`, `log_prob`, `noise_between` and `midpoint_step` of a scheduler, which says by `_row` what a
    timestep stands for, by `_rows_around` what its neighbour is, and by `_constrained` what x_0 may be.
    """

    config: Any
    _has_grid: bool  # whether `set_timesteps` was called

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
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
                Source of the noise; a list has one for each sample, or one for all. At a float eta of 0 it is not used.
            variance_noise (`torch.Tensor` of the sample's shape, *optional*):
                The noise itself, instead of a generator.
            return_dict (`bool`, defaults to `True`):
                Whether to return a `DDIMSchedulerOutput` or a plain tuple.

        Returns:
            `DDIMSchedulerOutput` or `tuple`: `prev_sample` (x_s) and `pred_original_sample` (x_0).

        Raises:
            ValueError, TypeError: If `set_timesteps` was not called, or for an argument of wrong value, shape or type.
        """
        check_floating("model_output", model_output)
        check_floating("sample", sample)
        check_generator(generator)
        if variance_noise is not None:
            _check_variance_noise(variance_noise, generator, sample)
        prev_sample, std, x_0 = self._transition(model_output, timestep, sample, eta, use_clipped_model_output)
        # 6. x_s = mean + std z, eq. (12). eta = 0 draws nothing.
        if std is not None:
            if variance_noise is None:
                variance_noise = noise_like(sample, generator)
            prev_sample = add_(prev_sample, std, cast(variance_noise, prev_sample.dtype))

        prev_sample, pred_original_sample = cast(prev_sample, sample.dtype), cast(x_0, sample.dtype)
        if self._is_multistep:
            self._remember(x_0.clone() if pred_original_sample is x_0 else x_0)
        if not return_dict:
            return prev_sample, pred_original_sample
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def transition(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
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
        check_floating("model_output", model_output)
        check_floating("sample", sample)
        mean, std, pred_original_sample = self._transition(
            model_output, timestep, sample, eta, use_clipped_model_output
        )
        if not isinstance(std, torch.Tensor):
            std = torch.full((), std or 0.0, dtype=mean.dtype, device=mean.device)
        return Transition(mean, std.to(mean.dtype), pred_original_sample)

    def _transition(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        eta: float | torch.Tensor | None,
        use_clipped_model_output: bool | None,
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Mean and std of `p(x_s | x_t)` and the predicted x_0, in float32 at least. The std is None for a float 0."""
        config = self.config
        variance_type = config.get("variance_type")
        if use_clipped_model_output is None:
            use_clipped_model_output = config.get("use_clipped_model_output", False)
        else:
            check_bool("use_clipped_model_output", use_clipped_model_output)

        # 1. the row of t, the std of eq. (16) and the direction that goes with it
        row, eta, sqrt = self._row(timestep, config.eta if eta is None else eta, sample)
        direction, std = direction_and_std(row, eta, sqrt, variance_type == "sigma_hat")
        model_output, variance = self._split_output(model_output, sample)
        if std is not None and variance is not None:
            std = times(_learned_std(variance, row, variance_type), eta)

        # 2. x_0 = p x_t + q m and eps = r x_t + w m, where m is the model output
        if sample.dtype != torch.float32 or model_output.dtype != torch.float32:
            dtype = computing_dtype(sample)
            sample, model_output = sample.to(dtype), model_output.to(dtype)
        prediction_type, alpha_s = self._prediction_type, row.alpha_s
        if prediction_type == "epsilon":  # the difference first: it may be small, and its terms are then rounded less
            x_0 = times_(add(sample, row.sigma_t, model_output, sign=-1), 1 / row.alpha_t)
        elif prediction_type == "sample":
            x_0 = model_output.clone()
        else:
            p, q, *_ = prediction_coefficients(prediction_type, row.alpha_t, row.sigma_t)
            x_0 = linear(sample, model_output, p, q)

        # 3. threshold or clip x_0
        x_0, is_constrained = self._constrained(x_0)

        # 4. the mean of x_s, alpha_s x_0 + direction eps, eq. (12), its factors gathered so that each is rounded once
        if not is_constrained:
            coefficients = prediction_coefficients(prediction_type, row.alpha_t, row.sigma_t)
            mean = linear(sample, model_output, *mean_factors(alpha_s, direction, *coefficients))
        elif use_clipped_model_output:  # with eps = (x_t - alpha_t x_0) / sigma_t of the clipped x_0
            b = direction / row.sigma_t
            mean = add_(times(x_0, alpha_s - b * row.alpha_t), b, sample)
        elif prediction_type == "epsilon":
            mean = add_(times(x_0, alpha_s), direction, model_output)
        else:
            *_, r, w = prediction_coefficients(prediction_type, row.alpha_t, row.sigma_t)
            mean = add_(add_(times(x_0, alpha_s), direction * w, model_output), direction * r, sample)

        # 5. of higher order: towards an x_0 that is extrapolated from those before it
        if self._is_multistep and (past := self._past(timestep, x_0)):
            gain = gain_of_x_0(row, direction)
            mean = add_(mean, -gain * sum(weight for weight, _ in past), x_0)
            for weight, x_0_before in past:
                mean = add_(mean, gain * weight, cast(x_0_before, mean.dtype))
        return mean, std, x_0

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
        check_choice("reduction", reduction, ("sum", "mean"))
        for name, tensor in (("prev_sample", prev_sample), ("mean", mean), ("std", std)):
            check_floating(name, tensor)
        check_same_shape("prev_sample", prev_sample, "mean", mean)
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
        timestep: float | torch.Tensor,
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
        check_floating("prev_sample", prev_sample)
        transition = self.transition(model_output, timestep, sample, eta, use_clipped_model_output)
        check_same_shape("prev_sample", prev_sample, "sample", sample)
        return transition.noise_of(prev_sample)

    def midpoint_step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
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
        for name, tensor in (("model_output", model_output), ("sample", sample), ("other_sample", other_sample)):
            check_floating(name, tensor)
        check_same_shape("other_sample", other_sample, "sample", sample)
        row, above = self._rows_around(timestep)

        a = above.sigma_t / above.alpha_t - row.sigma_t / row.alpha_t
        b = row.sigma_t / row.alpha_t - row.sigma_s / row.alpha_s
        of_above, of_sample = row.alpha_s * (b / a) ** 2 / above.alpha_t, row.alpha_s * (1 - (b / a) ** 2) / row.alpha_t
        of_epsilon = -row.alpha_s * b * (a + b) / a
        *_, r, w = prediction_coefficients(self._prediction_type, row.alpha_t, row.sigma_t)

        dtype = computing_dtype(sample)
        model_output = cast(self._split_output(model_output, sample)[0], dtype)
        change = (of_sample + of_epsilon * r) * cast(sample, dtype) + of_epsilon * w * model_output
        other_sample = cast(other_sample, dtype)
        result = (other_sample - change) / of_above if inverse else of_above * other_sample + change
        return cast(result, sample.dtype)

    def _split_output(
        self, model_output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The model output, of the sample's shape, and the half for a learned variance, if the model has one."""
        variance_type = self.config.get("variance_type")
        if variance_type not in ("learned", "learned_range"):
            if model_output.shape != sample.shape:
                hint = f" (`variance_type` is {variance_type!r})" if "variance_type" in self.config else ""
                raise ValueError(
                    f"`model_output` must have the sample's shape {tuple(sample.shape)}, but has "
                    f"{tuple(model_output.shape)}{hint}."
                )
            return model_output, None
        channels = sample.shape[1]
        if model_output.shape != (len(sample), 2 * channels, *sample.shape[2:]):
            raise ValueError(
                f"`model_output` must have twice the channels of the sample of shape {tuple(sample.shape)} for a "
                f"learned variance, but has shape {tuple(model_output.shape)}."
            )
        return model_output[:, :channels], model_output[:, channels:]

    def _check_timesteps_are_set(self):
        self._follow()
        if not self._has_grid:
            raise ValueError("`set_timesteps` must be called before `step`: the scheduler has no timesteps yet.")

    # --------------------------------------------------------------------------------- what a scheduler adds to this

    def _follow(self):
        """Takes over what people wrote into the scheduler since the last look."""
        raise NotImplementedError

    @property
    def _prediction_type(self) -> str:
        """What the model returns: one of those that `prediction_coefficients` knows."""
        return self.config.prediction_type

    def _row(self, timestep: Any, eta: float | torch.Tensor, sample: torch.Tensor):
        """The row of t, eta, and the square root to use on them: floats where reading t makes nobody wait."""
        raise NotImplementedError

    def _rows_around(self, timestep: Any) -> tuple[Row, Row]:
        """The rows of a timestep and of the next higher one of the grid, for a step that is linear in the sample."""
        raise NotImplementedError

    def _constrained(self, x_0: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """The predicted x_0, which may be changed in place, clipped or thresholded, and whether it was."""
        return x_0, False


def _learned_std(variance: torch.Tensor, row: Row, variance_type: str) -> torch.Tensor:
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


def _check_variance_noise(variance_noise: Any, generator: Any, sample: torch.Tensor):
    check_floating("variance_noise", variance_noise)
    check_same_shape("variance_noise", variance_noise, "sample", sample)
    if generator is not None:
        raise ValueError("`generator` and `variance_noise` cannot both be given: the noise has one source.")
