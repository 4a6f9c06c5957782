# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Inversion and interpolation (the paper's section 5.3): from images to the noise that they are made from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import ImagePipelineOutput
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor

from ..validation import check_choice, check_integer, check_number
from .components import Components, check_randomness, check_tensor, exact_dtype
from .images import image_generators, to_labels, to_tensor

logger = logging.get_logger(__name__)

INVERSION_METHODS = ("fixed_point", "plain", "o_belm", "noise_record")
PATIENCE = 3  # iterations without a smaller residual after which an image is given up


@dataclass
class EtaDDIMInversionOutput(BaseOutput):
    """
    What `EtaDDIMPipeline.invert` found.

    Args:
        latents (`torch.Tensor` of shape `(B, C, H, W)`):
            x_T, or rather the sample at the first timestep of the grid; float32, for `"o_belm"` float64.
        model_calls (`int`):
            How often the UNet was called.
        residuals (`torch.Tensor` of shape `(N, B)`, *optional*):
            Of `"fixed_point"`: for each step, in the order of sampling, and each image, how far the sampler's step from
            the solution misses where it should go, as root mean square over the pixels, of images in [-1, 1]. Of
            `"noise_record"` only the last step is solved; the others are 0.
        prev_latents (`torch.Tensor` of shape `(B, C, H, W)`, *optional*):
            Of `"o_belm"`: the sample after the first step.
        variance_noise (`torch.Tensor` of shape `(N, B, C, H, W)`, *optional*):
            Of `"noise_record"`: the noise z of every step.
    """

    latents: torch.Tensor
    model_calls: int
    residuals: torch.Tensor | None = None
    prev_latents: torch.Tensor | None = None
    variance_noise: torch.Tensor | None = None


def slerp(a: torch.Tensor, b: torch.Tensor, fractions: float | list[float] | torch.Tensor) -> torch.Tensor:
    """
    Spherical interpolation (the paper's section 5.3), with one angle for each image.

    Args:
        a, b (`torch.Tensor` of shape `(..., C, H, W)`): The ends. Parallel ones, or the same one twice, do no harm.
        fractions (`float`, or `list` or `torch.Tensor` of n): Places between a, at 0, and b, at 1.

    Returns:
        `torch.Tensor` of the ends' shape and dtype, after a dimension of length n if there are n fractions.

    Raises:
        ValueError, TypeError: If the ends differ in shape, are no images, or point in opposite directions (then no arc
            is the shortest); or if an end is zero or not finite.
    """
    for name, end in (("a", a), ("b", b)):
        if not isinstance(end, torch.Tensor) or not end.is_floating_point() or end.ndim < 3:
            raise TypeError(f"`{name}` must be a floating point tensor of shape (..., C, H, W), but is {end!r}.")
    if a.shape != b.shape:
        raise ValueError(f"`b` must have the shape of `a`, {tuple(a.shape)}, but has {tuple(b.shape)}.")
    dtype = torch.promote_types(a.dtype, torch.float32)
    ends = a.to(dtype), b.to(dtype)
    u, v = (end / torch.linalg.vector_norm(end, dim=(-3, -2, -1), keepdim=True) for end in ends)
    difference, total = (torch.linalg.vector_norm(x, dim=(-3, -2, -1), keepdim=True) for x in (u - v, u + v))
    if not (total > 1e-4).all():
        raise ValueError("No arc leads from `a` to `b`: one of them is zero or not finite, or they are opposite.")
    turns = 2 / torch.pi * torch.atan2(difference, total)  # the angle over pi, accurate where an arc cosine is not
    try:
        fractions = torch.as_tensor(fractions, dtype=dtype, device=a.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`fractions` must be a number or a list of them, but is {fractions!r}.") from None
    f = fractions.view(*fractions.shape, *(1,) * a.ndim)
    # sin(f angle) / sin(angle), by sinc(x) = sin(pi x) / (pi x), which has no 0/0
    of_a, of_b = (g * torch.sinc(g * turns) / torch.sinc(turns) for g in (1 - f, f))
    return (of_a * ends[0] + of_b * ends[1]).to(a.dtype)


class Inversion(Components):
    """The methods of `EtaDDIMPipeline` beside its call."""

    @torch.no_grad()
    def invert(
        self,
        image: PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor,
        num_inference_steps: int = 50,
        method: str = "fixed_point",
        tolerance: float = 2e-7,
        max_iterations: int = 30,
        timesteps: list[int] | None = None,
        eta: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        class_labels: list[int] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        condition: PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> EtaDDIMInversionOutput:
        r"""
        Finds the noise from which a call with the same steps makes the given images.

        Sampling with eta = 0 goes from x_t to x_s = f(x_t), and inversion solves that for x_t, from the image upwards.
        Clipping forgets x_t, so the scheduler must not clip.

        Args:
            image (PIL image or a list of B, array `(B, H, W, C)` or tensor `(B, C, H, W)` in [0, 1]):
                The images.
            num_inference_steps (`int`, defaults to 50):
                Number N of steps, at least 1. Not used if `timesteps` are given.
            method (`str`, defaults to `"fixed_point"`):
                `"fixed_point"`: solves each step by x_t <- x_t + h (x_s - f(x_t)), with the h of Barzilai and Borwein
                (https://doi.org/10.1093/imanum/8.1.141) for each image. It starts at the plain inversion and keeps the
                iterate of the smallest residual, so that no step is solved worse than by the plain inversion.
                `"plain"`: that start alone, what `EtaDDIMInverseScheduler` gives; N model calls. Where a step does not
                depend on x_t but by the model (`"sample"`, to x_0), it starts at x_s.
                `"o_belm"`: for a call with `method="o_belm"` and `prev_latents`, exact by algebra; N - 1 model calls
                and a fixed point for the first step.
                `"noise_record"`: for a call with the same `eta` and with `variance_noise`: each x_t is the image with
                noise of its own (https://arxiv.org/abs/2304.06140), and the z of each step is what leads from one to
                the next; exact, but for the step to x_0, which is a fixed point.
            tolerance (`float`, defaults to 2e-7):
                Root mean square of the residual x_s - f(x_t) at which an image's step is solved, positive.
            max_iterations (`int`, defaults to 30):
                Largest number of iterations of a step, at least 1. With 1, the plain inversion and its residual.
            timesteps (`list[int]`, *optional*):
                The timesteps to visit, strictly decreasing, if the scheduler takes them.
            eta (`float`, *optional*):
                For `"noise_record"`: eta of eq. (16), in (0, 1]; 1 if not given.
            seed (`int`, *optional*):
                For `"noise_record"`: gives image k a generator of its own, as in a call.
            generator (`torch.Generator` or a list of B, *optional*):
                For `"noise_record"`: source of the noise, instead of `seed`.
            class_labels, guidance_scale, condition, height, width:
                As in a call.

        Returns:
            `EtaDDIMInversionOutput`: the latents, and what belongs to the method. The log says how many steps stayed
            above `tolerance`, if any.

        Raises:
            ValueError, TypeError: For an argument of wrong value, shape or type, or a scheduler that clips, before any
                work is done.
            ValueError: At the end, if the result is not finite.

        Example:

        ```py
        >>> found = pipe.invert(image, num_inference_steps=50)
        >>> same_image = pipe(latents=found.latents, num_inference_steps=50).images[0]
        ```
        """
        check_choice("method", method, INVERSION_METHODS)
        check_number("tolerance", tolerance)
        if tolerance <= 0:
            raise ValueError(f"`tolerance` must be positive, but is {tolerance}.")
        check_integer("max_iterations", max_iterations, 1)
        for name, value in (("eta", eta), ("seed", seed), ("generator", generator)):
            if value is not None and method != "noise_record":
                raise ValueError(f"`{name}` belongs to `method` 'noise_record', but that is {method!r}.")
        eta = 1.0 if eta is None else eta
        check_number("eta", eta, 0.0, 1.0)
        if eta == 0:
            raise ValueError("`eta` must be above 0 for a noise record, but is 0: no step takes any noise then.")
        self._check_grid(num_inference_steps, timesteps)
        needed = {"o_belm": "midpoint_step", "noise_record": "noise_between"}.get(method, "step")
        self._check_method_of_scheduler("method", method, needed)
        self._check_scheduler_has_no_history("method", method, timesteps)
        self._check_scheduler_does_not_clip()
        sample = to_tensor("image", image, self.image_channels)
        self._check_size("image", sample, height, width)
        condition = self._to_condition(condition, (sample.shape[2], sample.shape[3]), len(sample))
        self._check_class_labels(class_labels, guidance_scale, len(sample))
        check_randomness(seed, generator, len(sample))

        # 1. the grid, upwards from x_0: each t with the level s below it
        device = self._execution_device
        self._set_timesteps(num_inference_steps, timesteps, method)
        ascending = self.scheduler.timesteps.flip(0)
        steps = list(zip(ascending, ascending.to(device), [-1, *ascending[:-1].tolist()], strict=True))
        sample = 2 * sample.to(device) - 1
        if class_labels is not None:
            class_labels = to_labels(class_labels).to(device)

        model_dtype, calls = self._network.dtype, 0

        def predict(sample, t, t_on_device, rows=slice(None)):
            nonlocal calls
            calls += 1
            labels = None if class_labels is None else class_labels[rows]
            conditions = None if condition is None else condition[rows]
            return self._predict(sample, t, t_on_device, labels, conditions, guidance_scale, model_dtype)

        def solve(sample, t, t_on_device, s):
            """x_t and the residual of each image; the plain inversion if there are no iterations."""

            def residual(x, rows):
                return sample[rows] - self.scheduler.step(predict(x, t, t_on_device, rows), t, x, eta=0.0).prev_sample

            iterations = 0 if method == "plain" else max_iterations
            return _solve(residual, sample, self._inverse_gain(t, s), tolerance, iterations)

        # 2. the method
        residuals = torch.zeros(len(steps), len(sample), device=device)
        prev_latents = variance_noise = None
        if method in ("plain", "fixed_point"):
            for i, step in enumerate(self.progress_bar(steps)):
                sample, residuals[-1 - i] = solve(sample, *step)
        elif method == "o_belm":
            dtype = exact_dtype(device)
            prev_latents, (sample, _) = sample.to(dtype), solve(sample, *steps[0])
            sample = sample.to(dtype)
            for t, t_on_device, _ in self.progress_bar(steps[:-1]):
                model_output = predict(sample, t, t_on_device)
                upper = self.scheduler.midpoint_step(model_output, t, sample, prev_latents, inverse=True)
                prev_latents, sample = sample, upper
        else:
            if seed is not None:
                generator = image_generators(seed, range(len(sample)))
            first, residuals[-1] = solve(sample, *steps[0])
            noisy = [sample, first]  # x_0 and the samples at the timesteps
            for t, *_ in steps[1:]:
                noise = randn_tensor(sample.shape, generator, device, torch.float32)
                noisy.append(self._add_noise(noisy[0], noise, t))
            sample, noises = noisy[-1], []
            state = sample
            for (t, t_on_device, _), target in zip(self.progress_bar(steps[::-1]), noisy[-2::-1], strict=True):
                model_output = predict(state, t, t_on_device)
                noises.append(self.scheduler.noise_between(model_output, t, state, target, eta=eta))
                state = self.scheduler.step(model_output, t, state, eta=eta, variance_noise=noises[-1]).prev_sample
            variance_noise = torch.stack(noises)

        self.maybe_free_model_hooks()
        self._check_finite("latents", sample)
        if variance_noise is not None:
            self._check_finite("noise records", variance_noise.transpose(0, 1))
        is_tested = method in ("fixed_point", "noise_record")
        if is_tested and (unsolved := int((residuals > tolerance).sum())):
            logger.warning(
                f"{unsolved} of {len(steps)} x {len(sample)} steps are not solved to `tolerance` {tolerance}: the "
                f"largest residual is {residuals.max():.2g}. More `num_inference_steps` or `max_iterations` may help."
            )
        return EtaDDIMInversionOutput(
            latents=sample,
            model_calls=calls,
            residuals=residuals if is_tested else None,
            prev_latents=prev_latents,
            variance_noise=variance_noise,
        )

    @torch.no_grad()
    def interpolate(
        self,
        a: Any,
        b: Any,
        n: int,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        class_labels: list[int] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        condition: PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Images on the way from one to another: `slerp` between their latents x_T, sampled with eta = 0 (the paper's
        section 5.3).

        Args:
            a, b (`int`, or a list of B; PIL image, a list of B or array `(B, H, W, C)`; tensor `(B, C, H, W)`):
                The ends: seeds, of the first image that a call with this `seed` makes; images, which are inverted; or,
                a tensor, latents x_T.
            n (`int`):
                Number of images from a to b, both ends included, at least 2.
            num_inference_steps (`int`, defaults to 50):
                Number of steps, at least 1. Not used if `timesteps` are given.
            timesteps, guidance_scale, height, width, output_type, return_dict:
                As in a call.
            class_labels (`list[int]` or `torch.Tensor` of B integers, *optional*):
                Classes of the B pairs, for a class-conditional UNet.
            condition (as in a call, *optional*):
                Conditions of the B pairs.

        Returns:
            `ImagePipelineOutput` or `tuple`: B times n images, those of the first pair first.

        Raises:
            ValueError, TypeError: For an argument of wrong value, shape or type, or images and a scheduler that clips,
                before any work is done; or if no arc leads from one end to the other.
        """
        check_integer("n", n, 2)
        self._check_grid(num_inference_steps, timesteps)
        self._check_output_type(output_type)
        ends = [self._to_tensor_of_end(name, end, height, width) for name, end in (("a", a), ("b", b))]
        are_images = [not isinstance(end, torch.Tensor) and not _are_seeds(end) for end in (a, b)]
        if ends[0].shape != ends[1].shape:
            shapes = tuple(ends[0].shape), tuple(ends[1].shape)
            raise ValueError(f"`b` must have as many images of one size as `a`: they are {shapes[1]} and {shapes[0]}.")
        self._check_class_labels(class_labels, guidance_scale, len(ends[0]))
        if any(are_images):
            self._check_scheduler_does_not_clip()
        settings: dict[str, Any] = {
            "num_inference_steps": num_inference_steps,
            "timesteps": timesteps,
            "guidance_scale": guidance_scale,
            "height": ends[0].shape[2],
            "width": ends[0].shape[3],
        }
        pairs = self._to_condition(condition, (ends[0].shape[2], ends[0].shape[3]), len(ends[0]))
        start, end = (
            self.invert(end, class_labels=class_labels, condition=condition, **settings).latents if is_image else end
            for end, is_image in zip(ends, are_images, strict=True)
        )
        latents = slerp(start, end, torch.linspace(0, 1, n)).transpose(0, 1).flatten(0, 1)
        if class_labels is not None:
            class_labels = to_labels(class_labels).repeat_interleave(n)
        if pairs is not None:
            pairs = (pairs / 2 + 0.5).repeat_interleave(n, dim=0)
        return self(
            eta=0.0,
            latents=latents,
            class_labels=class_labels,
            condition=pairs,
            output_type=output_type,
            return_dict=return_dict,
            **settings,
        )

    def _to_tensor_of_end(self, name: str, end: Any, height: Any, width: Any) -> torch.Tensor:
        """The latents of an end of `interpolate`, or its images in [0, 1], (B, C, H, W)."""
        channels, device = self.image_channels, self._execution_device
        if _are_seeds(end):
            seeds = end if isinstance(end, list) else [end]
            for seed in seeds:
                check_integer(name, seed, 0)
            generators = [image_generators(seed, [0])[0] for seed in seeds]
            shape = (len(seeds), channels, *self._image_size(height, width))
            return randn_tensor(shape, generators, device, torch.float32)
        if isinstance(end, torch.Tensor):
            check_tensor(name, end, (len(end) if end.ndim else 1, channels, *end.shape[2:]))
            end = end.to(device, torch.float32)
        else:
            end = to_tensor(name, end, channels)
        self._check_size(name, end, height, width)
        return end

    def _inverse_gain(self, t: int | torch.Tensor, s: int) -> float:
        """The gain of the step x_s = x_t / gain + factor * model_output; 1 where x_t is not in it."""
        bar_t, bar_s = float(self._alpha_cumprod(t)), float(self._alpha_cumprod(s))
        prediction_type = self.scheduler.config.prediction_type
        if prediction_type == "epsilon":
            return (bar_t / bar_s) ** 0.5
        if prediction_type == "sample":
            return ((1 - bar_t) / (1 - bar_s)) ** 0.5 if bar_s < 1 else 1.0
        return 1 / max(1e-3, (bar_t * bar_s) ** 0.5 + ((1 - bar_t) * (1 - bar_s)) ** 0.5)


def _solve(
    residual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    sample: torch.Tensor,
    gain: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Solves `residual(x, rows) = 0` for each image by x <- x + h residual. Returns the best iterate from the first on,
    x = sample + gain residual(sample), and the root mean square of its residual.
    """
    rows = torch.arange(len(sample), device=sample.device)  # of the images that are not done
    x, value = sample, residual(sample, rows)
    new = x + gain * value
    best, error = new.clone(), torch.full((len(sample),), torch.inf, device=sample.device)
    waited = torch.zeros_like(rows)
    for _ in range(max_iterations):
        new_value = residual(new, rows)
        new_error = new_value.square().mean((1, 2, 3)).sqrt()
        better = new_error < error[rows]
        best[rows[better]], error[rows[better]] = new[better], new_error[better]
        waited = torch.where(better, 0, waited + 1)
        going_on = (error[rows] > tolerance) & (waited < PATIENCE)
        if not going_on.any():
            break
        x, value, new, new_value, rows, waited = (v[going_on] for v in (x, value, new, new_value, rows, waited))
        # the h with which the last change of x would have removed the change of the residual
        change, of_value = (new - x).flatten(1), (new_value - value).flatten(1)
        h = -(change * of_value).sum(1) / of_value.square().sum(1).clamp(min=1e-30)
        x, value = new, new_value
        new = x + h.clamp(gain / 100, gain * 100).view(-1, 1, 1, 1) * value
    return best, error


def _are_seeds(end: Any) -> bool:
    seeds = end if isinstance(end, list) else [end]
    return bool(seeds) and all(isinstance(k, int | np.integer) and not isinstance(k, bool) for k in seeds)
