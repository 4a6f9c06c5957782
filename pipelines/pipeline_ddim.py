# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Image generation and editing with DDIM (https://arxiv.org/abs/2010.02502).

This file travels with a model: it and what it imports need diffusers, huggingface_hub, numpy, Pillow and torch alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from ..sharing import PIPELINE_ENTRY, SharedPipeline
from ..travelling import travelling_code
from ..validation import check_choice, check_integer, check_number
from .components import (
    as_sampler,
    check_channels,
    check_network,
    check_randomness,
    check_sampler,
    check_tensor,
    exact_dtype,
    takes,
)
from .images import from_latents, image_generators, to_labels, to_tensor
from .inversion import Inversion

logger = logging.get_logger(__name__)

METHODS = ("ddim", "o_belm")


class EtaDDIMPipeline(Inversion, SharedPipeline, DiffusionPipeline):
    r"""
    Generates, inverts, interpolates and edits images with a `UNet2DModel` that was trained as a DDPM.

    Args:
        unet (`UNet2DModel`):
            Predicts epsilon, x_0 or v (as the scheduler's `prediction_type` says) from x_t and t. It returns as many
            channels as it takes, twice as many for a learned variance; the channels that it takes beyond those it
            returns are of a `condition`. Also one in `torch.compile`, DDP or PEFT, or of another class that is called
            in the same way.
        scheduler (`SchedulerMixin`):
            Kept as it is if it is an `EtaDDIMScheduler` or of a class derived from that, or if its `step` takes `eta`.
            Any other, a `DDPMScheduler` for instance, is converted by `EtaDDIMScheduler.from_config`, and so are
            diffusers' own `DDIMScheduler` and `DDIMParallelScheduler`; the log says so.

    Raises:
        TypeError: If the network or the scheduler is of another kind, also when one is assigned later.
        ValueError: If the network's channels do not fit, or the scheduler's config cannot be converted.
    """

    __module__ = "ddim_scheduler"  # the package, also for a copy of this file that came with a model
    _code = travelling_code(__name__, PIPELINE_ENTRY)
    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin):
        super().__init__()
        scheduler = as_sampler(scheduler)
        check_network(unet)
        check_channels(unet, getattr(getattr(scheduler, "config", None), "variance_type", None))
        self.register_modules(unet=unet, scheduler=scheduler)

    def __setattr__(self, name: str, value: Any):
        if name == "unet":
            check_network(value)
        elif name == "scheduler":
            check_sampler(value)
        super().__setattr__(name, value)

    def _write_code(self, folder: Path):
        super()._write_code(folder)
        if not takes(self.scheduler.step, "eta"):
            logger.warning(
                f"`scheduler` is a {type(self.scheduler).__name__}, which takes no eta: what is saved loads only where "
                "the package ddim-scheduler is installed, with an EtaDDIMScheduler in its place."
            )

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
        condition: PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None,
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
                Number B of images, at least 1. If not given, that of `latents`, `image`, `condition` or `class_labels`,
                or 1.
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
                `without + w (with - without)` class and condition. If it is not 1, the last of the UNet's
                `num_class_embeds` classes is taken as "no class" and 0, mid-gray, as no condition, which the UNet must
                have been trained with; a step calls it once, for 2B images.
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
            condition (as `image`, with the channels that the UNet takes beyond those it returns, *optional*):
                What the images are made from, for a UNet that was trained with such pictures: a smaller image, a map, a
                mask. It is scaled to their size, and one serves the whole batch.
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
            ValueError: At the end, if an image is not finite: NaN in the weights, or an overflow.

        Example:

        ```py
        >>> from ddim_scheduler import EtaDDIMPipeline

        >>> pipe = EtaDDIMPipeline.from_pretrained("outputs/digits")
        >>> images = pipe(batch_size=4, num_inference_steps=20, seed=0).images
        ```
        """
        if strength is None:
            strength = 0.8 if image is not None and mask is None else 1.0
        shape, start, mask, condition = self.check_inputs(
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
            condition,
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
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(len(self.scheduler.timesteps) - num_steps)
        grid = self.scheduler.timesteps[-num_steps:]
        steps = list(zip(grid, grid.to(device), [*grid[1:].tolist(), -1], strict=True))

        # 2. x_T, or the image with noise; the state stays float32, or float64, whatever the model's dtype
        dtype = exact_dtype(device) if method == "o_belm" else torch.float32
        if latents is None:
            latents = randn_tensor(shape, generator, device, torch.float32) * self.scheduler.init_noise_sigma
        latents = latents.to(device, dtype)
        if start is not None:
            start, noise = start.to(device), latents
            latents = self._add_noise(start, noise, grid[0])
        if mask is not None:
            mask = mask.to(device)
        if class_labels is not None:
            class_labels = to_labels(class_labels).to(device)
        last_latents = None
        if prev_latents is not None:
            latents, last_latents = prev_latents.to(device, dtype), latents
            steps = steps[1:]

        # 3. the loop
        given: dict[str, Any] = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
        if takes(self.scheduler.step, "generator"):
            given["generator"] = generator
        step_kwargs = {name: value for name, value in given.items() if value is not None}
        model_dtype = self._network.dtype
        for i, (t, t_on_device, s) in enumerate(self.progress_bar(steps)):
            if variance_noise is not None:
                step_kwargs |= {"generator": None, "variance_noise": variance_noise[i].to(device, dtype)}
            for resample in reversed(range(num_resamples)):
                model_output = self._predict(
                    latents, t, t_on_device, class_labels, condition, guidance_scale, model_dtype
                )
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
                returned = callback_on_step_end(self, i, t, dict.fromkeys(callback_on_step_end_tensor_inputs, latents))
                if isinstance(returned, dict) and "latents" in returned:
                    check_tensor("latents` of `callback_on_step_end", returned["latents"], shape)
                    latents = returned["latents"].to(device, dtype)

        # 4. the images
        self.maybe_free_model_hooks()
        latents = latents.float()
        self._check_finite("images", latents)
        images = from_latents(latents, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

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
        condition,
        height,
        width,
        variance_noise,
        method,
        prev_latents,
        use_clipped_model_output,
        output_type,
        callback_on_step_end,
        callback_on_step_end_tensor_inputs,
    ) -> tuple[tuple[int, int, int, int], torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        Checks the arguments of a call. Returns the shape of its latents, the start image in [-1, 1], the mask, with one
        image or B, and the condition in [-1, 1].
        """
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1)
        self._check_grid(num_inference_steps, timesteps)
        self._check_step_arguments(eta, use_clipped_model_output)
        channels = self.image_channels
        if latents is not None and not (isinstance(latents, torch.Tensor) and latents.ndim == 4):
            raise TypeError(f"`latents` must be a tensor of shape (B, C, H, W), but is {latents!r}.")
        if image is not None:
            image = 2 * to_tensor("image", image, channels) - 1
        if mask is not None:
            mask = to_tensor("mask", mask, 1)
        if batch_size is None:
            labels = None if class_labels is None else to_labels(class_labels)
            conditions = condition if isinstance(condition, list | np.ndarray | torch.Tensor) else None
            batch_size = max(len(given) for given in ([None], latents, image, labels, conditions) if given is not None)
        check_randomness(seed, generator, batch_size)

        size = self._image_size(height, width, image if latents is None else latents)
        shape = (batch_size, channels, *size)
        if latents is not None:
            check_tensor("latents", latents, shape)
        for name, tensor in (("image", image), ("mask", mask)):
            if tensor is not None:
                self._check_size(name, tensor, *size)
                if len(tensor) not in (1, batch_size):
                    raise ValueError(f"`{name}` must hold one image or `batch_size` = {batch_size}, not {len(tensor)}.")
        condition = self._to_condition(condition, size, batch_size)
        if image is None and mask is not None:
            raise ValueError("`mask` is given without an `image` to be kept outside of it.")
        check_number("strength", strength)
        if not 0 < strength <= 1:
            raise ValueError(f"`strength` must be in (0, 1], but is {strength}.")
        if image is None and strength != 1:
            raise ValueError(f"`strength` is {strength}, but there is no start `image`.")
        check_integer("num_resamples", num_resamples, 1)
        if num_resamples > 1 and (mask is None or variance_noise is not None):
            raise ValueError(f"`num_resamples` {num_resamples} needs a `mask` and goes without `variance_noise`.")
        if num_resamples > 1:
            self._check_scheduler_has_no_history("num_resamples", num_resamples, timesteps)
        if image is not None:
            image = image.expand(batch_size, -1, -1, -1)

        if variance_noise is not None:
            self._check_method_of_scheduler("variance_noise", "given", "noise_between")
            num_steps = max(1, round(strength * (num_inference_steps if timesteps is None else len(timesteps))))
            check_tensor("variance_noise", variance_noise, (num_steps, *shape))
            if not (getattr(self.scheduler.config, "eta", 0.0) if eta is None else eta):
                raise ValueError("`variance_noise` is given, but `eta` is 0: no step takes any noise then.")
        check_choice("method", method, METHODS)
        if method == "o_belm":
            self._check_method_of_scheduler("method", method, "midpoint_step")
            self._check_scheduler_does_not_clip()
            if image is not None or variance_noise is not None or (eta or getattr(self.scheduler.config, "eta", 0.0)):
                raise ValueError("`method` 'o_belm' goes without noise: no `image`, no `variance_noise`, and `eta` 0.")
        elif prev_latents is not None:
            raise ValueError(f"`prev_latents` belong to `method` 'o_belm', but it is {method!r}.")
        if prev_latents is not None:
            if latents is None:
                raise ValueError("`prev_latents` are given without the `latents` that come before them.")
            check_tensor("prev_latents", prev_latents, shape)

        self._check_class_labels(class_labels, guidance_scale, batch_size)
        self._check_output_type(output_type)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(f"`callback_on_step_end` must be callable, but is {callback_on_step_end!r}.")
        names = callback_on_step_end_tensor_inputs
        if not isinstance(names, list) or not set(names) <= set(self._callback_tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be of {self._callback_tensor_inputs}, but is {names!r}."
            )
        return shape, image, mask, condition
