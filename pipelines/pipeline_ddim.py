# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Image generation, inversion, interpolation and editing with DDIM (https://arxiv.org/abs/2010.02502).

This file needs diffusers, huggingface_hub, numpy, Pillow and torch alone, so that it can be shipped inside a model
repository.
"""

import hashlib
import importlib
import inspect
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import (
    CommitInfo,
    ModelCard,
    ModelCardData,
    create_repo,
    file_exists,
    hf_hub_download,
    model_info,
    upload_folder,
)

logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
METHODS = ("ddim", "o_belm")
INVERSION_METHODS = ("fixed_point", "plain", "o_belm", "noise_record")
PATIENCE = 3  # iterations without a smaller residual after which an image is given up
NOT_UPLOADED = ["checkpoint-*/*", "unfinished-*/*", "logs/*", ".*", "*/.*"]  # a training's own files, hidden ones
CONFIG_NAMES = ("model_index.json", "config.json", "scheduler_config.json")


def image_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """
    One CPU generator for each image, seeded by (seed, index) alone: image k is the same on any device, in any batch.

    Args:
        seed (`int`): Seed of the whole set of images, at least 0.
        indices (iterable of `int`): Numbers of the images in the set, each at least 0.

    Raises:
        ValueError, TypeError: If one of them is no such integer.
    """
    _check_integer("seed", seed, 0)
    if not isinstance(indices, Iterable):
        raise TypeError(f"`indices` must be integers, but are {indices!r}.")
    indices = list(indices)
    for k in indices:
        _check_integer("indices", k, 0)
    states = [np.random.SeedSequence([seed, k]).generate_state(1, np.uint64) for k in indices]
    return [torch.Generator().manual_seed(int(state[0]) >> 1) for state in states]


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


class EtaDDIMPipeline(DiffusionPipeline):
    r"""
    Generates, inverts, interpolates and edits images with a `UNet2DModel` that was trained as a DDPM.

    Args:
        unet (`UNet2DModel`):
            Predicts epsilon, x_0 or v (as the scheduler's `prediction_type` says) from x_t and t.
        scheduler (`SchedulerMixin`):
            Kept as it is if its `step` takes `eta`; any other, a `DDPMScheduler` for instance, is converted by
            `EtaDDIMScheduler.from_config`.
    """

    # the package, also for a copy of this file that was loaded from the Hub
    __module__ = "ddim_scheduler"
    # read now: diffusers loads all such files by one path, so that another version may be there later
    _code = Path(__file__).read_bytes()
    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin):
        super().__init__()
        if not hasattr(scheduler, "step"):
            raise TypeError(f"`scheduler` must have a method `step`, but is {type(scheduler).__name__}.")
        if "eta" not in inspect.signature(scheduler.step).parameters:
            name = type(scheduler).__name__
            try:
                # not by a statement: diffusers asks everyone who loads this file from the Hub for what it imports
                package = importlib.import_module("ddim_scheduler")
            except ModuleNotFoundError:
                raise ImportError(
                    f"`scheduler` is a {name}, which takes no eta: its conversion needs the package ddim-scheduler."
                ) from None
            logger.info(f"{name} takes no eta: the pipeline samples with EtaDDIMScheduler instead.")
            scheduler = package.EtaDDIMScheduler.from_config(scheduler.config)
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        num_inference_steps: int = 50,
        eta: float | None = None,
        timesteps: list[int] | None = None,
        seed: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        class_labels: list[int] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        image: PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None,
        strength: float | None = None,
        mask: PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None,
        num_resamples: int = 1,
        height: int | None = None,
        width: int | None = None,
        variance_noise: torch.Tensor | None = None,
        method: str = "ddim",
        prev_latents: torch.Tensor | None = None,
        use_clipped_model_output: bool | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["EtaDDIMPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' spelling; read only)
    ) -> ImagePipelineOutput | tuple:
        r"""
        Samples images from noise, or from a start image, or within a mask.

        Args:
            batch_size (`int`, *optional*):
                Number B of images, at least 1. If not given, that of `latents`, `image` or `class_labels`, or 1.
            num_inference_steps (`int`, defaults to 50):
                Number N of steps, at least 1. Not used if `timesteps` are given.
            eta (`float`, *optional*):
                eta of the paper's eq. (16), in [0, 1]: 0 is deterministic, 1 is DDPM's ancestral sampling. The
                scheduler's own value if not given.
            timesteps (`list[int]`, *optional*):
                The timesteps to visit, strictly decreasing, if the scheduler takes them.
            seed (`int`, *optional*):
                Gives image k a generator of its own, seeded by (seed, k): the same image for any batch size and device.
            generator (`torch.Generator` or a list of B, *optional*):
                Source of all noise, instead of `seed`. `image_generators` makes such a list.
            latents (`torch.Tensor` of shape `(B, C, H, W)`, *optional*):
                The starting noise x_T, standard normal. With `image`, the noise that is added to it.
            class_labels (`list[int]` or `torch.Tensor` of B integers, *optional*):
                Classes, for a class-conditional UNet.
            guidance_scale (`float`, defaults to 1.0):
                w of classifier-free guidance (https://arxiv.org/abs/2207.12598), finite: the model output is
                `without + w (with - without)` class. If it is not 1, the last of the UNet's `num_class_embeds` classes
                is taken as "no class", which the UNet must have been trained with; a step calls it once, for 2B images.
            image (PIL image or a list of B, array `(B, H, W, C)` or tensor `(B, C, H, W)` in [0, 1], *optional*):
                The start image x_0, what `output_type` `"pil"`, `"np"` and `"pt"` return. One image serves the whole
                batch.
            strength (`float`, *optional*):
                How much of `image` is replaced, in (0, 1]: of the N steps the last `max(1, round(strength * N))` are
                done, from `image` with the noise of the first of them. 0.8 if not given, 1 with a `mask`.
            mask (as `image`, with one channel, *optional*):
                Where to paint `image` anew: 1 (white) is painted, 0 is kept; values between are mixed. After each step
                the kept region is set to `image` with the noise of the timestep arrived at.
            num_resamples (`int`, defaults to 1):
                How often each step within a mask is done: after all but the last time the noise of the step is added
                again, so that the painted region learns of the kept one (RePaint, https://arxiv.org/abs/2201.09865).
            height, width (`int`, *optional*):
                Size of the images, divisible by the UNet's reduction. The UNet's `sample_size` if not given.
            variance_noise (`torch.Tensor` of shape `(N, B, C, H, W)`, *optional*):
                The noise z of each step that is done, instead of the generator's; standard normal, or from
                `invert(..., method="noise_record")`.
            method (`str`, defaults to `"ddim"`):
                `"ddim"`: the scheduler's step. `"o_belm"`: after the first step the midpoint rule
                `EtaDDIMScheduler.midpoint_step`, second order, eta = 0, which `invert(..., method="o_belm")` runs
                backwards; the state is float64.
            prev_latents (`torch.Tensor` of shape `(B, C, H, W)`, *optional*):
                For `"o_belm"`: the sample after the first step, which is left out then.
            use_clipped_model_output (`bool`, *optional*):
                Re-derive epsilon from the clipped x_0. The scheduler's own value if not given.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`: a list of PIL images; `"np"`: float32 array `(B, H, W, C)` in [0, 1]; `"pt"`: float32 tensor
                `(B, C, H, W)` in [0, 1]; `"latent"`: x_0 as the sampler left it, about [-1, 1].
            return_dict (`bool`, defaults to `True`):
                Whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipeline, step, timestep, tensors)` after each step that is done, counted from 0. It
                may return a dictionary with `latents` to go on with.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`):
                Names of the tensors that the callback is given.

        Returns:
            `ImagePipelineOutput` or `tuple`: the images.

        Raises:
            ValueError, TypeError: For an argument of wrong value, shape or type, before any work is done.

        Example:

        ```py
        >>> from ddim_scheduler import EtaDDIMPipeline

        >>> pipe = EtaDDIMPipeline.from_pretrained("outputs/digits")
        >>> images = pipe(batch_size=4, num_inference_steps=20, seed=0).images
        ```
        """
        if strength is None:
            strength = 0.8 if image is not None and mask is None else 1.0
        shape, start, mask = self.check_inputs(
            batch_size,
            num_inference_steps,
            eta,
            timesteps,
            seed,
            generator,
            latents,
            class_labels,
            guidance_scale,
            image,
            strength,
            mask,
            num_resamples,
            height,
            width,
            variance_noise,
            method,
            prev_latents,
            use_clipped_model_output,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        device = self._execution_device
        if seed is not None:
            generator = image_generators(seed, range(shape[0]))

        # 1. the grid: on the host for the scheduler, on the device for the model, so that no step makes the host wait
        self._set_timesteps(num_inference_steps, timesteps, method)
        num_steps = max(1, round(strength * len(self.scheduler.timesteps)))
        grid = self.scheduler.timesteps[-num_steps:]
        steps = list(zip(grid, grid.to(device), [*grid[1:].tolist(), -1], strict=True))

        # 2. x_T, or the image with noise; the state stays float32, or float64, whatever the model's dtype
        dtype = _exact_dtype(device) if method == "o_belm" else torch.float32
        if latents is None:
            latents = randn_tensor(shape, generator, device, torch.float32) * self.scheduler.init_noise_sigma
        latents = latents.to(device, dtype)
        if start is not None:
            start, noise = start.to(device), latents
            latents = self._add_noise(start, noise, grid[0])
        if mask is not None:
            mask = mask.to(device)
        if class_labels is not None:
            class_labels = _to_labels(class_labels).to(device)
        last_latents = None
        if prev_latents is not None:
            latents, last_latents = prev_latents.to(device, dtype), latents
            steps = steps[1:]

        # 3. the loop
        given = {"eta": eta, "use_clipped_model_output": use_clipped_model_output, "generator": generator}
        step_kwargs: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        for i, (t, t_on_device, s) in enumerate(self.progress_bar(steps)):
            if variance_noise is not None:
                step_kwargs |= {"generator": None, "variance_noise": variance_noise[i].to(device, dtype)}
            for resample in reversed(range(num_resamples)):
                model_output = self._predict(latents, t, t_on_device, class_labels, guidance_scale)
                if method == "o_belm" and last_latents is not None:
                    sample = self.scheduler.midpoint_step(model_output, t, latents, last_latents)
                else:
                    sample = self.scheduler.step(model_output, t, latents, **step_kwargs).prev_sample
                if mask is not None:
                    sample = mask * sample + (1 - mask) * self._add_noise(start, noise, s)
                if resample:
                    ratio = self._alpha_cumprod(t) / self._alpha_cumprod(s)
                    fresh = randn_tensor(shape, generator, device, torch.float32)
                    sample = ratio.sqrt() * sample + (1 - ratio).sqrt() * fresh
                latents, last_latents = sample, latents if method == "o_belm" else None
            if callback_on_step_end is not None:
                tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                returned = callback_on_step_end(self, i, t, tensors)
                if isinstance(returned, dict) and "latents" in returned:
                    _check_tensor("latents` of `callback_on_step_end", returned["latents"], shape)
                    latents = returned["latents"].to(device, dtype)

        # 4. the images
        images: Any = latents.float()
        if output_type != "latent":
            images = (images / 2 + 0.5).clamp(0, 1)
        if output_type in ("np", "pil"):
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)

        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        return ImagePipelineOutput(images=images)

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
            class_labels, guidance_scale, height, width:
                As in a call.

        Returns:
            `EtaDDIMInversionOutput`: the latents, and what belongs to the method. The log says how many steps stayed
            above `tolerance`, if any.

        Raises:
            ValueError, TypeError: For an argument of wrong value, shape or type, or a scheduler that clips, before any
                work is done.

        Example:

        ```py
        >>> found = pipe.invert(image, num_inference_steps=50)
        >>> same_image = pipe(latents=found.latents, num_inference_steps=50).images[0]
        ```
        """
        _check_choice("method", method, INVERSION_METHODS)
        _check_number("tolerance", tolerance)
        if tolerance <= 0:
            raise ValueError(f"`tolerance` must be positive, but is {tolerance}.")
        _check_integer("max_iterations", max_iterations, 1)
        for name, value in (("eta", eta), ("seed", seed), ("generator", generator)):
            if value is not None and method != "noise_record":
                raise ValueError(f"`{name}` belongs to `method` 'noise_record', but that is {method!r}.")
        eta = 1.0 if eta is None else eta
        _check_number("eta", eta, 0.0, 1.0)
        if eta == 0:
            raise ValueError("`eta` must be above 0 for a noise record, but is 0: no step takes any noise then.")
        self._check_grid(num_inference_steps, timesteps)
        needed = {"o_belm": "midpoint_step", "noise_record": "noise_between"}.get(method, "step")
        self._check_method_of_scheduler("method", method, needed)
        self._check_scheduler_does_not_clip()
        sample = _to_tensor("image", image, self.unet.config.in_channels)
        self._check_size("image", sample, height, width)
        self._check_class_labels(class_labels, guidance_scale, len(sample))
        _check_randomness(seed, generator, len(sample))

        # 1. the grid, upwards from x_0: each t with the level s below it
        device = self._execution_device
        self._set_timesteps(num_inference_steps, timesteps, method)
        ascending = self.scheduler.timesteps.flip(0)
        steps = list(zip(ascending, ascending.to(device), [-1, *ascending[:-1].tolist()], strict=True))
        sample = 2 * sample.to(device) - 1
        if class_labels is not None:
            class_labels = _to_labels(class_labels).to(device)

        calls = 0

        def predict(sample, t, t_on_device, rows=slice(None)):
            nonlocal calls
            calls += 1
            labels = None if class_labels is None else class_labels[rows]
            return self._predict(sample, t, t_on_device, labels, guidance_scale)

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
            dtype = _exact_dtype(device)
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

        Returns:
            `ImagePipelineOutput` or `tuple`: B times n images, those of the first pair first.

        Raises:
            ValueError, TypeError: For an argument of wrong value, shape or type, or images and a scheduler that clips,
                before any work is done; or if no arc leads from one end to the other.
        """
        _check_integer("n", n, 2)
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
        start, end = (
            self.invert(end, class_labels=class_labels, **settings).latents if is_image else end
            for end, is_image in zip(ends, are_images, strict=True)
        )
        latents = slerp(start, end, torch.linspace(0, 1, n)).transpose(0, 1).flatten(0, 1)
        if class_labels is not None:
            class_labels = _to_labels(class_labels).repeat_interleave(n)
        return self(
            eta=0.0,
            latents=latents,
            class_labels=class_labels,
            output_type=output_type,
            return_dict=return_dict,
            **settings,
        )

    def _to_tensor_of_end(self, name: str, end: Any, height: Any, width: Any) -> torch.Tensor:
        """The latents of an end of `interpolate`, or its images in [0, 1], (B, C, H, W)."""
        channels, device = self.unet.config.in_channels, self._execution_device
        if _are_seeds(end):
            seeds = end if isinstance(end, list) else [end]
            for seed in seeds:
                _check_integer(name, seed, 0)
            generators = [image_generators(seed, [0])[0] for seed in seeds]
            shape = (len(seeds), channels, *self._image_size(height, width))
            return randn_tensor(shape, generators, device, torch.float32)
        if isinstance(end, torch.Tensor):
            _check_tensor(name, end, (len(end) if end.ndim else 1, channels, *end.shape[2:]))
            end = end.to(device, torch.float32)
        else:
            end = _to_tensor(name, end, channels)
        self._check_size(name, end, height, width)
        return end

    # --------------------------------------------------------------------------------------- steps of the loops above

    def _set_timesteps(self, num_inference_steps: int, timesteps: list[int] | None, method: str):
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps)
        else:
            self.scheduler.set_timesteps(timesteps=timesteps)
        first = self.scheduler.timesteps[0]
        if method == "o_belm" and self._alpha_cumprod(first) == 0:
            raise ValueError(f"`method` 'o_belm' cannot start at timestep {first}, where there is no signal.")

    def _predict(self, latents, t, t_on_device, class_labels, guidance_scale) -> torch.Tensor:
        """What the UNet returns for x_t, with classifier-free guidance."""
        model_input = self.scheduler.scale_model_input(latents, t).to(self.unet.dtype)
        if guidance_scale == 1:
            return self.unet(model_input, t_on_device, class_labels).sample
        no_class = torch.full_like(class_labels, self.unet.config.num_class_embeds - 1)
        twice = self.unet(torch.cat([model_input] * 2), t_on_device, torch.cat([class_labels, no_class])).sample
        with_class, without = twice.float().chunk(2)
        channels = latents.shape[1]  # a learned variance follows them
        guided = torch.lerp(without[:, :channels], with_class[:, :channels], guidance_scale)
        return torch.cat([guided, with_class[:, channels:]], dim=1)

    def _alpha_cumprod(self, t: int | torch.Tensor) -> torch.Tensor:
        """alpha-bar of a timestep, or for -1 of where the last step goes to."""
        return self.scheduler.alphas_cumprod[t] if t >= 0 else self.scheduler.final_alpha_cumprod

    def _add_noise(self, image, noise, t) -> torch.Tensor:
        """The image, in [-1, 1], with the noise of a timestep; -1 is the image itself."""
        return image if t < 0 else self.scheduler.add_noise(image, noise, torch.as_tensor(t).view(1))

    def _inverse_gain(self, t: int | torch.Tensor, s: int) -> float:
        """The gain of the step x_s = x_t / gain + factor * model_output; 1 where x_t is not in it."""
        bar_t, bar_s = float(self._alpha_cumprod(t)), float(self._alpha_cumprod(s))
        prediction_type = self.scheduler.config.prediction_type
        if prediction_type == "epsilon":
            return (bar_t / bar_s) ** 0.5
        if prediction_type == "sample":
            return ((1 - bar_t) / (1 - bar_s)) ** 0.5 if bar_s < 1 else 1.0
        return 1 / max(1e-3, (bar_t * bar_s) ** 0.5 + ((1 - bar_t) * (1 - bar_s)) ** 0.5)

    # -------------------------------------------------------------------------------------------------------- checks

    def check_inputs(
        self,
        batch_size,
        num_inference_steps,
        eta,
        timesteps,
        seed,
        generator,
        latents,
        class_labels,
        guidance_scale,
        image,
        strength,
        mask,
        num_resamples,
        height,
        width,
        variance_noise,
        method,
        prev_latents,
        use_clipped_model_output,
        output_type,
        callback_on_step_end,
        callback_on_step_end_tensor_inputs,
    ) -> tuple[tuple[int, int, int, int], torch.Tensor | None, torch.Tensor | None]:
        """
        Checks the arguments of a call. Returns the shape of its latents, the start image in [-1, 1] and the mask, each
        with one image or B.
        """
        if batch_size is not None:
            _check_integer("batch_size", batch_size, 1)
        self._check_grid(num_inference_steps, timesteps)
        if eta is not None:
            _check_number("eta", eta, 0.0, 1.0)
        if use_clipped_model_output is not None:
            if not isinstance(use_clipped_model_output, bool):
                raise TypeError(f"`use_clipped_model_output` must be a bool, but is {use_clipped_model_output!r}.")
            self._check_taken_by("step", "use_clipped_model_output", use_clipped_model_output)
        channels = self.unet.config.in_channels
        if latents is not None and not (isinstance(latents, torch.Tensor) and latents.ndim == 4):
            raise TypeError(f"`latents` must be a tensor of shape (B, C, H, W), but is {latents!r}.")
        if image is not None:
            image = 2 * _to_tensor("image", image, channels) - 1
        if mask is not None:
            mask = _to_tensor("mask", mask, 1)
        if batch_size is None:
            labels = None if class_labels is None else _to_labels(class_labels)
            batch_size = max(len(given) for given in ([None], latents, image, labels) if given is not None)
        _check_randomness(seed, generator, batch_size)

        size = self._image_size(height, width, image if latents is None else latents)
        shape = (batch_size, channels, *size)
        if latents is not None:
            _check_tensor("latents", latents, shape)
        for name, tensor in (("image", image), ("mask", mask)):
            if tensor is not None:
                self._check_size(name, tensor, *size)
                if len(tensor) not in (1, batch_size):
                    raise ValueError(f"`{name}` must hold one image or `batch_size` = {batch_size}, not {len(tensor)}.")
        if image is None and mask is not None:
            raise ValueError("`mask` is given without an `image` to be kept outside of it.")
        _check_number("strength", strength)
        if not 0 < strength <= 1:
            raise ValueError(f"`strength` must be in (0, 1], but is {strength}.")
        if image is None and strength != 1:
            raise ValueError(f"`strength` is {strength}, but there is no start `image`.")
        _check_integer("num_resamples", num_resamples, 1)
        if num_resamples > 1 and (mask is None or variance_noise is not None):
            raise ValueError(f"`num_resamples` {num_resamples} needs a `mask` and goes without `variance_noise`.")
        if image is not None:
            image = image.expand(batch_size, -1, -1, -1)

        if variance_noise is not None:
            self._check_method_of_scheduler("variance_noise", "given", "noise_between")
            num_steps = max(1, round(strength * (num_inference_steps if timesteps is None else len(timesteps))))
            _check_tensor("variance_noise", variance_noise, (num_steps, *shape))
            if not (self.scheduler.config.get("eta", 0.0) if eta is None else eta):
                raise ValueError("`variance_noise` is given, but `eta` is 0: no step takes any noise then.")
        _check_choice("method", method, METHODS)
        if method == "o_belm":
            self._check_method_of_scheduler("method", method, "midpoint_step")
            self._check_scheduler_does_not_clip()
            if image is not None or variance_noise is not None or (eta or self.scheduler.config.get("eta", 0.0)):
                raise ValueError("`method` 'o_belm' goes without noise: no `image`, no `variance_noise`, and `eta` 0.")
        elif prev_latents is not None:
            raise ValueError(f"`prev_latents` belong to `method` 'o_belm', but it is {method!r}.")
        if prev_latents is not None:
            if latents is None:
                raise ValueError("`prev_latents` are given without the `latents` that come before them.")
            _check_tensor("prev_latents", prev_latents, shape)

        self._check_class_labels(class_labels, guidance_scale, batch_size)
        self._check_output_type(output_type)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(f"`callback_on_step_end` must be callable, but is {callback_on_step_end!r}.")
        names = callback_on_step_end_tensor_inputs
        if not isinstance(names, list) or not set(names) <= set(self._callback_tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be of {self._callback_tensor_inputs}, but is {names!r}."
            )
        return shape, image, mask

    def _check_grid(self, num_inference_steps, timesteps):
        _check_integer("num_inference_steps", num_inference_steps, 1)
        if timesteps is not None:
            self._check_taken_by("set_timesteps", "timesteps", timesteps)
            if not isinstance(timesteps, list | tuple | np.ndarray | torch.Tensor):
                raise TypeError(f"`timesteps` must be a list of integers, but is {timesteps!r}.")

    def _check_taken_by(self, method: str, name: str, value: Any):
        if name not in inspect.signature(getattr(self.scheduler, method)).parameters:
            raise ValueError(f"`{name}` is {value!r}, but `{method}` of {type(self.scheduler).__name__} takes none.")

    def _check_output_type(self, output_type: Any):
        _check_choice("output_type", output_type, OUTPUT_TYPES)
        channels = self.unet.config.in_channels
        if output_type == "pil" and channels not in (1, 3, 4):
            raise ValueError(f"`output_type` 'pil' needs 1, 3 or 4 channels, but the UNet has {channels}; use 'np'.")

    def _check_method_of_scheduler(self, name: str, value: Any, needed: str):
        if not hasattr(self.scheduler, needed):
            raise ValueError(
                f"`{name}` is {value!r}, but {type(self.scheduler).__name__} has no `{needed}`; use EtaDDIMScheduler."
            )

    def _check_scheduler_does_not_clip(self):
        for name in ("clip_sample", "thresholding"):
            if self.scheduler.config.get(name):
                raise ValueError(
                    f"`{name}` is True in the scheduler's config, and clipping cannot be inverted: set `pipe.scheduler "
                    f"= EtaDDIMScheduler.from_config(pipe.scheduler.config, {name}=False)` for it and for sampling."
                )

    def _image_size(self, height: Any, width: Any, latents: torch.Tensor | None = None) -> tuple[int, int]:
        """Height and width: what is given, or the UNet's, or that of the latents if it has none."""
        size = self.unet.config.sample_size
        if size is None and latents is not None:
            size = tuple(latents.shape[-2:])
        size = (size, size) if isinstance(size, int) or size is None else size
        given = [value if other is None else other for value, other in zip(size, (height, width), strict=True)]
        factor = 2 ** (len(self.unet.config.down_block_types) - 1)
        for name, value in zip(("height", "width"), given, strict=True):
            if value is None:
                raise ValueError(f"`{name}` or `latents` must be given: the UNet's `sample_size` is None.")
            _check_integer(name, value, 1)
            if value % factor:
                raise ValueError(f"`{name}` must be divisible by {factor} for this UNet, but is {value}.")
        return given[0], given[1]

    def _check_size(self, name: str, image: torch.Tensor, height: Any, width: Any):
        size = self._image_size(height, width, image)
        if tuple(image.shape[-2:]) != size:
            raise ValueError(
                f"`{name}` must have height and width {size}, but has {tuple(image.shape[-2:])}; resize it, or give "
                "`height` and `width`."
            )

    def _check_class_labels(self, class_labels, guidance_scale, batch_size):
        if (class_labels is None) != (self.unet.class_embedding is None):
            raise ValueError(
                f"`class_labels` must be given exactly if the UNet is class-conditional, but are {class_labels!r}."
            )
        number = self.unet.config.num_class_embeds
        if class_labels is not None:
            labels = _to_labels(class_labels)
            if len(labels) != batch_size:
                raise ValueError(
                    f"`class_labels` must hold `batch_size` = {batch_size} labels, but are {class_labels!r}."
                )
            if number is not None and not ((labels >= 0) & (labels < number)).all():
                raise ValueError(f"`class_labels` must be in 0..{number - 1}, but are {class_labels!r}.")
        _check_number("guidance_scale", guidance_scale)
        if guidance_scale != 1 and (class_labels is None or number is None):
            raise ValueError(
                f"`guidance_scale` is {guidance_scale}, but the UNet has no `num_class_embeds` classes to guide to."
            )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        sample_image: PIL.Image.Image | None = None,
        training_settings: dict[str, Any] | None = None,
    ) -> CommitInfo | None:
        """
        Saves the pipeline, with the code that loads it where the package ddim-scheduler is not installed: this file as
        `pipeline.py`, and the scheduler's in the scheduler's folder.

        `EtaDDIMPipeline.from_pretrained` and, after `import ddim_scheduler`, `DiffusionPipeline.from_pretrained` use
        the package and never run that code; `DiffusionPipeline.from_pretrained(..., custom_pipeline="pipeline",
        trust_remote_code=True)` runs it.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder; it is made if it is not there.
            safe_serialization (`bool`, defaults to `True`):
                Whether to write safetensors or pickles.
            variant (`str`, *optional*):
                Goes into the names of the weight files: `diffusion_pytorch_model.<variant>.safetensors`.
            max_shard_size (`int` or `str`, *optional*):
                Largest size of a weight file, in bytes or as `"5GB"`.
            push_to_hub (`bool`, defaults to `False`):
                Whether to upload the folder to the Hub, with all that is in it but a training's checkpoints and logs.
                The arguments below are for that, and a model card `README.md` is written with it: how to load the
                model, with the number of steps that were set last, and the scheduler's settings. It takes the place of
                a card that an earlier push wrote; one that a person wrote or changed, in the folder or in the
                repository, is kept. Hidden files are not uploaded.
            repo_id (`str`, *optional*):
                The repository; it is made if it is not there. In your namespace with the folder's name if not given.
            commit_message (`str`, *optional*):
                `"Upload EtaDDIMPipeline"` if not given.
            private (`bool`, *optional*):
                Whether to make the repository private. Your account's default if not given.
            token (`str`, *optional*):
                The token to use instead of the stored one.
            create_pr (`bool`, defaults to `False`):
                Whether to open a pull request instead of committing.
            license (`str`, *optional*):
                The licence of the weights for the card, `"apache-2.0"` for instance. If not given, that of the card of
                an earlier push, or none.
            sample_image (`PIL.Image.Image`, *optional*):
                A picture for the card, saved as `sample.png`. If not given, a `sample.png` that is in the folder. That
                of an earlier push goes with its card.
            training_settings (`dict`, *optional*):
                How the model was trained, for the card. If not given, a `training_args.json` that is in the folder, as
                the training script writes it.

        Returns:
            `CommitInfo` or `None`: the commit of a push.

        Raises:
            FileExistsError: If `save_directory` is a file.
            TypeError: If `sample_image` is no picture that PNG can hold, or `training_settings` are not JSON-able.
            ValueError: For a push, before anything is written, if `private` is `True` and the repository is a public
                one, or if the folder holds a link that leads out of it.
        """
        picture = None if sample_image is None else _as_png(sample_image)
        folder = Path(save_directory)
        record = folder / "training_args.json"
        if push_to_hub and training_settings is None and record.is_file():
            try:
                training_settings = json.loads(record.read_bytes())
            except ValueError as error:
                raise ValueError(f"{record} is no JSON: {error}") from None
        try:
            json.dumps(training_settings, default=str)
        except TypeError as error:
            raise TypeError(
                f"`training_settings` must be JSON-able, but are {training_settings!r:.80}: {error}"
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        if push_to_hub:  # the checks come before the work
            _check_links(folder, folder.rglob("*"))
            repo_id = create_repo(repo_id or folder.resolve().name, private=private, token=token, exist_ok=True).repo_id
            if private and not model_info(repo_id, token=token).private:
                raise ValueError(f"`private` is True, but the repository {repo_id} is there already, and is public.")

        # Written aside, so that a save that fails leaves an older one as it was. Then the index of that one goes first
        # and the new one comes last: half a save cannot be loaded.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as aside:
            super().save_pretrained(
                aside, safe_serialization=safe_serialization, variant=variant, max_shard_size=max_shard_size
            )
            code = vars(type(self)).get("_code")  # that of a subclass is elsewhere
            if code is not None:
                Path(aside, "pipeline.py").write_bytes(code)
            for name in ("model_index.json", "pipeline.py", *_weight_files(variant)):
                for path in folder.glob(name):
                    path.unlink(missing_ok=True)
            files = [path for path in Path(aside).rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda path: path.name == "model_index.json"):
                target = folder / path.relative_to(aside)
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
        if repo_id is None or not push_to_hub:
            return None

        if picture is not None:
            (folder / "sample.png").write_bytes(picture)
        card, replaced = folder / "README.md", _weight_files(variant)
        if (not card.exists() or _is_signed(card)) and file_exists(repo_id, "README.md", token=token):
            shutil.copyfile(hf_hub_download(repo_id, "README.md", token=token), card)
        if not card.exists() or _is_signed(card):
            if license is None and card.exists():
                license = ModelCard.load(card).data.get("license")
            text = self._model_card(folder, repo_id, variant, license, training_settings)
            card.write_text(_signed(text), encoding="utf-8")
            replaced.append("sample.png")  # of the former model
        elif license is not None or training_settings is not None:
            logger.warning(f"{repo_id} has a README.md, which is kept: `license` and `training_settings` are not used.")
        return upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            ignore_patterns=NOT_UPLOADED,
            delete_patterns=replaced,
            token=token,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
        )

    def push_to_hub(self, repo_id: str, commit_message: str | None = None, **kwargs: Any) -> CommitInfo | None:
        """
        Uploads the pipeline, its code and a model card to the Hub.

        Args:
            repo_id (`str`): The repository, `"user/name"`; it is made if it is not there.
            commit_message (`str`, *optional*): `"Upload EtaDDIMPipeline"` if not given.
            kwargs: The other arguments of `save_pretrained`: `private`, `token`, `license`, `sample_image`...

        Returns:
            `CommitInfo`: the commit.

        Raises:
            ValueError: If `repo_id` is no name, or if `private` is `True` and the repository is a public one.
        """
        if not isinstance(repo_id, str) or not repo_id:
            raise ValueError(f"`repo_id` must be the name of a repository, but is {repo_id!r}.")
        with tempfile.TemporaryDirectory() as folder:
            return self.save_pretrained(
                folder, push_to_hub=True, repo_id=repo_id, commit_message=commit_message, **kwargs
            )

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
        """
        Reads the model_index.json of `from_pretrained`, which calls this before it loads anything.

        Raises:
            ValueError: If it has a component that this pipeline would leave out (the VAE of latent diffusion), if a
                file or name leads out of the folder, or if a config is no dictionary: diffusers would take a string for
                the name of another repository.
        """
        if any(kwargs.values()):  # in older diffusers, the entries of an archive instead of a folder
            return super()._dict_from_json_file(json_file, **kwargs)
        folder, components = Path(json_file).parent, [*inspect.signature(cls).parameters]
        paths = [path for path in folder.iterdir() if path.is_file()]
        _check_links(folder, [*paths, *(path for name in components for path in (folder / name).glob("*"))])
        for path in (folder / part / name for part in ("", *components) for name in CONFIG_NAMES):
            _check_config_file(path)

        config = super()._dict_from_json_file(json_file)
        for name, value in config.items():
            is_module = name == "_class_name" or not name.startswith("_")
            if not is_module or not isinstance(value, list) or not any(value):  # [null, null] is one that is left out
                continue
            if any(isinstance(part, str) and Path(part).name != part for part in (name, *value)):
                raise ValueError(f"{json_file} leads out of its folder by {name!r}: {value}.")
            if name not in (*components, "_class_name"):
                raise ValueError(
                    f"{json_file} has a component {name!r}, which {cls.__name__} does not use: load it by its own "
                    f"class, {config.get('_class_name')}, and set the scheduler of that to an EtaDDIMScheduler."
                )
        return config

    def _model_card(
        self,
        folder: Path,
        repo_id: str,
        variant: str | None,
        license: str | None,
        training_settings: dict[str, Any] | None,
    ) -> str:
        """The text of README.md. Its steps are those of the scheduler's last grid, if one was set."""
        name, scheduler, unet = type(self).__name__, self.scheduler, self.unet
        is_conditional = unet.class_embedding is not None
        metadata = ModelCardData(
            library_name="diffusers",
            pipeline_tag="unconditional-image-generation",
            license=license,
            tags=["ddim", "ddpm"],
        )
        source = f'"{repo_id}"' if variant is None else f'"{repo_id}", variant="{variant}"'
        steps = scheduler.num_inference_steps or min(50, scheduler.config.num_train_timesteps)
        arguments, imports, latents = f"batch_size=4, num_inference_steps={steps}, seed=0", "", ""
        if is_conditional:
            arguments += ", class_labels=[0] * 4"
        if unet.config.in_channels not in (1, 3, 4):  # no picture
            arguments += ', output_type="np"'
        if unet.config.sample_size is None:
            size = 8 * 2 ** (len(unet.config.block_out_channels) - 1)
            imports = "import torch\n"
            latents = f"latents = torch.randn(4, {unet.config.in_channels}, {size}, {size})  # any height and width\n"
            arguments += ", latents=latents"
        sampling = f"{latents}images = pipe({arguments}).images"
        settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_") and not isinstance(v, list)}

        # Line by line: in one long string, diffusers would take the lines that import something for this file's own.
        parts = [f"---\n{metadata.to_yaml()}\n---", f"# {repo_id.split('/')[-1]}"]
        if (folder / "sample.png").is_file():
            parts.append("![Samples](sample.png)")
        parts += [
            f"{'A class-conditional' if is_conditional else 'An unconditional'} image model, trained as a "
            "[DDPM](https://arxiv.org/abs/2006.11239), sampled by [DDIM](https://arxiv.org/abs/2010.02502).",
            "## Use",
            "With the package ddim-scheduler:",
            f"```python\n{imports}from {type(self).__module__} import {name}",
            f"pipe = {name}.from_pretrained({source})\n{sampling}\n```",
        ]
        if (folder / "pipeline.py").is_file():
            parts += [
                "Without it, by the code in this repository. Read `pipeline.py` and `scheduler/` before you trust it:",
                f"```python\n{imports}from diffusers import DiffusionPipeline",
                f"pipe = DiffusionPipeline.from_pretrained(\n    {source}, "
                f'custom_pipeline="pipeline", trust_remote_code=True\n)\n{sampling}\n```',
            ]
        parts += ["## Scheduler", f"`{type(scheduler).__name__}`:", _json_block(settings)]
        if scheduler.num_inference_steps is not None:
            parts.append(f"Timesteps of {steps} steps: {', '.join(str(t) for t in scheduler.timesteps.tolist())}.")
        if training_settings is not None:
            parts += ["## Training", _json_block(training_settings)]
        return "\n\n".join(parts) + "\n"


def _weight_files(variant: str | None) -> list[str]:
    """Patterns of the UNet's weight files in every format, whole and in shards, of one variant."""
    stem, part = "unet/diffusion_pytorch_model", "" if variant is None else f".{variant}"
    formats = ("safetensors", "bin")
    return [
        *(f"{stem}{part}.{suffix}" for suffix in formats),
        *(f"{stem}{part}-?????-of-?????.{suffix}" for suffix in formats),
        *(f"{stem}.{suffix}.index{part}.json" for suffix in formats),
    ]


def _check_config_file(path: Path):
    """Refuses a file of JSON that is no dictionary. One that is not there, or is no JSON, diffusers names itself."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary, but holds {content!r:.80}.")


def _check_links(folder: Path, paths: Iterable[Path]):  # also in the scheduler's file: each must stand alone
    """Refuses paths that a link leads out of the folder. Files in the Hub's cache are links to its `blobs`."""
    roots = [folder.resolve()]
    for parent in folder.resolve().parents:
        if parent.name == "snapshots":  # the repository's blobs, some of which are links to those of the whole cache
            roots += [parent.parent / "blobs", parent.parent.parent / "blobs"]
    for path in paths:
        target = path.resolve()
        if not any(target.is_relative_to(root) for root in roots):
            raise ValueError(f"{path} leads out of its folder by a link, to {target}: put the file itself there.")


def _signed(card: str) -> str:
    """The card with a last line by which a later push knows that nobody changed it."""
    checksum = hashlib.sha256(card.encode()).hexdigest()[:16]
    return f"{card}\n<!-- Written by ddim-scheduler and renewed with the model, unless it is changed. {checksum} -->\n"


def _is_signed(path: Path) -> bool:
    card = path.read_text(encoding="utf-8", errors="replace")  # a person's may be in another encoding
    return card == _signed(card.rpartition("\n<!--")[0])


def _as_png(image: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        image.save(buffer, "PNG")
    except (AttributeError, OSError):  # no picture, or of a mode that PNG does not know
        raise TypeError(f"`sample_image` must be a PIL image that PNG can hold, but is {image!r:.80}.") from None
    return buffer.getvalue()


def _json_block(settings: dict[str, Any]) -> str:
    return f"```json\n{json.dumps(settings, indent=2, default=str)}\n```"


def _exact_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


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


def _to_tensor(name: str, image: Any, channels: int) -> torch.Tensor:
    """Images as a float32 tensor (B, C, H, W) in [0, 1]."""
    images = image if isinstance(image, list) else [image]
    if images and all(isinstance(i, PIL.Image.Image) for i in images):
        modes = {1: "L", 3: "RGB", 4: "RGBA"}
        if channels not in modes or any(i.mode[0] in "IF" for i in images):
            kinds = {i.mode for i in images}
            raise ValueError(
                f"`{name}` of mode {kinds} cannot be turned into 8 bits and {channels} channels; use an array."
            )
        if len({i.size for i in images}) > 1:
            raise ValueError(f"`{name}` must hold images of one size, but has {sorted({i.size for i in images})}.")
        array = np.stack([np.asarray(i.convert(modes[channels])).reshape(i.height, i.width, channels) for i in images])
        return torch.from_numpy(array.astype(np.float32) / 255).permute(0, 3, 1, 2)
    if isinstance(image, np.ndarray) and image.ndim == 4 and image.dtype.kind in "fb":
        image = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)).permute(0, 3, 1, 2)
    if isinstance(image, torch.Tensor) and image.dtype == torch.bool:
        image = image.float()
    if not isinstance(image, torch.Tensor) or image.ndim != 4 or not image.is_floating_point():
        is_array = isinstance(image, np.ndarray | torch.Tensor)
        kind = f"{image.dtype} of shape {tuple(image.shape)}" if is_array else repr(image)
        raise TypeError(
            f"`{name}` must be a PIL image, a list of them, or a floating point array (B, H, W, C) or tensor (B, C, H, "
            f"W), but is {kind}."
        )
    if image.shape[1] != channels or not len(image):
        raise ValueError(
            f"`{name}` must hold at least one image of {channels} channels, but has the shape {tuple(image.shape)}."
        )
    if not ((image >= 0) & (image <= 1)).all():
        raise ValueError(f"`{name}` must be in [0, 1], but is in [{image.min():.4g}, {image.max():.4g}].")
    return image.float()


def _to_labels(class_labels: Any) -> torch.Tensor:
    try:
        labels = torch.as_tensor(class_labels)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`class_labels` must be a list of integers, but are {class_labels!r}.") from None
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"`class_labels` must be a list of integers, but are {class_labels!r}.")
    return labels.long()


def _are_seeds(end: Any) -> bool:
    seeds = end if isinstance(end, list) else [end]
    return bool(seeds) and all(isinstance(k, int | np.integer) and not isinstance(k, bool) for k in seeds)


def _check_tensor(name: str, tensor: Any, shape: tuple[int, ...]):
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tuple(tensor.shape) != shape:
        is_tensor = isinstance(tensor, torch.Tensor)
        kind = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if is_tensor else repr(tensor)
        raise ValueError(f"`{name}` must be a floating point tensor of shape {shape}, but is {kind}.")


def _check_integer(name: str, value: Any, least: int):
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer, but is {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, but is {value}.")


def _check_number(name: str, value: Any, low: float = -np.inf, high: float = np.inf):
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"`{name}` must be a number, but is {value!r}.")
    if not np.isfinite(value):
        raise ValueError(f"`{name}` must be finite, but is {value!r}.")
    if not low <= value <= high:
        raise ValueError(f"`{name}` must be in [{low}, {high}], but is {value!r}.")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]):
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, but is {value!r}.")


def _check_randomness(seed: Any, generator: Any, batch_size: int):
    if seed is not None:
        _check_integer("seed", seed, 0)
    if seed is not None and generator is not None:
        raise ValueError("`seed` and `generator` cannot both be given: the noise has one source.")
    generators = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(g, torch.Generator) for g in generators):
        raise TypeError(f"`generator` must be a torch.Generator or a list of them, but is {generator!r}.")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"`generator` must hold `batch_size` = {batch_size} generators, but holds {len(generator)}.")
