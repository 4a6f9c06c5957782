# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The network and the scheduler: which ones the pipeline takes, and what its loops ask of them."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, DDIMParallelScheduler, DDIMScheduler, UNet2DModel
from diffusers.utils import logging

from ..image_files import scale_to
from ..validation import check_bool, check_choice, check_generator, check_integer, check_number
from .images import to_labels, to_tensor

logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

# What this package is there to replace. A class that someone derived from them is kept.
REPLACED = (DDIMScheduler, DDIMParallelScheduler)
WRAPPED = ("_orig_mod", "module", "base_model", "model")  # by torch.compile, by DDP and FSDP, by PEFT twice


def unwrapped(network: Any) -> Any:
    """The network in `torch.compile`, DDP, FSDP or PEFT. A wrapper with a config of its own is itself the network."""
    while not isinstance(network, UNet2DModel | torch.nn.DataParallel):  # that one has neither device nor dtype
        modules = [getattr(network, name, None) for name in WRAPPED]
        inner = next((m for m in modules if isinstance(m, torch.nn.Module) and m is not network), None)
        config = getattr(inner, "config", None)
        if inner is None or getattr(network, "config", config) is not config:
            break
        network = inner
    return network


def check_network(unet: Any):
    """Refuses a network that the loops cannot call. Other classes of `UNet2DModel`'s interface are taken."""
    if unet is None:  # `from_pretrained(..., unet=None)` leaves it out
        return
    network = unwrapped(unet)
    if isinstance(network, torch.nn.DataParallel):
        raise TypeError("`unet` must not be a DataParallel: give the network in it, `unet.module`, or take DDP.")
    if not isinstance(network, UNet2DModel):
        forward = getattr(network, "forward", None)
        arguments = [] if forward is None else [*inspect.signature(forward).parameters]
        if arguments[2:3] != ["class_labels"] or not hasattr(network, "class_embedding"):
            raise TypeError(
                f"`unet` must be a UNet2DModel, called with x_t, t and class labels, but is {_kind_of(network)}."
            )


def check_channels(unet: Any, variance_type: str | None):
    """
    Refuses a network that returns another number of channels than the scheduler takes. Those that it takes beyond what
    it returns are of a condition, which goes without a learned variance.
    """
    if unet is None:
        return
    network = unwrapped(unet)
    taken, returned = network.config.in_channels, network.config.out_channels
    is_learned = variance_type in ("learned", "learned_range")
    is_known = type(network).forward is UNet2DModel.forward  # another one may return what it likes
    if (returned < taken and is_learned) or (is_known and (returned != 2 * taken if is_learned else returned > taken)):
        raise ValueError(
            f"`unet` must return {'twice' if is_learned else 'at most'} as many channels as it takes, since the "
            f"scheduler's `variance_type` is {variance_type!r}, but it takes {taken} and returns {returned}."
        )


def _kind_of(value: Any) -> str:
    return f"the class {value.__name__} itself" if isinstance(value, type) else f"a {type(value).__name__}"


def takes(method: Callable, name: str) -> bool:
    """Whether a method takes an argument of this name, or any."""
    parameters = inspect.signature(method).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_sampler(scheduler: Any):
    """Refuses what is no scheduler for sampling."""
    if isinstance(scheduler, type) or not hasattr(scheduler, "step"):
        raise TypeError(f"`scheduler` must be an object with a method `step`, but is {_kind_of(scheduler)}.")
    # by name, since a copy of our class that came with a model is another class
    if any("Inverse" in cls.__name__ for cls in type(scheduler).__mro__):
        raise TypeError(
            f"`scheduler` must go towards the image, but is {_kind_of(scheduler)}: give the sampler of that, "
            "`EtaDDIMScheduler.from_config(scheduler.config)`; `invert` uses it backwards."
        )


def as_sampler(scheduler: Any) -> Any:
    """The scheduler itself, if it is ours or its `step` takes eta; otherwise an `EtaDDIMScheduler` of its config."""
    check_sampler(scheduler)
    if any(cls.__module__ == "ddim_scheduler" for cls in type(scheduler).__mro__):
        return scheduler
    is_replaced = type(scheduler) in REPLACED and "step" not in vars(scheduler)
    if takes(scheduler.step, "eta") and not is_replaced:
        return scheduler

    name = type(scheduler).__name__
    try:
        # not by a statement: diffusers asks everyone who loads this file from the Hub for what it imports
        package = importlib.import_module("ddim_scheduler")
    except ModuleNotFoundError:
        if takes(scheduler.step, "eta"):
            logger.warning(f"The pipeline samples with {name}: its conversion needs the package ddim-scheduler.")
            return scheduler
        raise ImportError(
            f"`scheduler` is a {name}, which takes no eta: its conversion needs the package ddim-scheduler."
        ) from None
    reason = "is the one of diffusers" if is_replaced else "takes no eta"
    logger.info(f"{name} {reason}: the pipeline samples with EtaDDIMScheduler instead.")
    return package.EtaDDIMScheduler.from_config(scheduler.config)


def exact_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def check_tensor(name: str, tensor: Any, shape: tuple[int, ...]):
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tuple(tensor.shape) != shape:
        is_tensor = isinstance(tensor, torch.Tensor)
        kind = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if is_tensor else repr(tensor)
        raise ValueError(f"`{name}` must be a floating point tensor of shape {shape}, but is {kind}.")


def check_randomness(seed: Any, generator: Any, batch_size: int):
    if seed is not None:
        check_integer("seed", seed, 0)
    if seed is not None and generator is not None:
        raise ValueError("`seed` and `generator` cannot both be given: the noise has one source.")
    check_generator(generator, batch_size)


class Components(ConfigMixin):
    """What the call and the inversion share; a part of `EtaDDIMPipeline`."""

    @property
    def _network(self) -> Any:
        """The UNet, without what it is wrapped in."""
        if self.unet is None:
            raise ValueError("`unet` is None: the pipeline was loaded without it, and has nothing to sample from.")
        return unwrapped(self.unet)

    def _set_timesteps(self, num_inference_steps: int, timesteps: list[int] | None, method: str):
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps)
        else:
            self.scheduler.set_timesteps(timesteps=timesteps)
        first = self.scheduler.timesteps[0]
        if method == "o_belm" and self._alpha_cumprod(first) == 0:
            raise ValueError(f"`method` 'o_belm' cannot start at timestep {first}, where there is no signal.")

    @property
    def image_channels(self) -> int:
        """The number of channels C of the images."""
        return min(self._network.config.in_channels, self._network.config.out_channels)

    @property
    def condition_channels(self) -> int:
        """The number of channels of a condition, which the UNet takes after those of x_t; 0 without."""
        return self._network.config.in_channels - self.image_channels

    def _predict(self, latents, t, t_on_device, class_labels, condition, guidance_scale, dtype) -> torch.Tensor:
        """
        What the UNet returns for x_t and the condition, with classifier-free guidance. `dtype` is that of the UNet, for
        which diffusers walks through all of its modules: once for a call, not for each step.
        """
        model_input = self.scheduler.scale_model_input(latents, t)
        without = model_input  # the condition, which is 0 then, and the class
        if condition is not None:
            model_input, without = (
                torch.cat([model_input, c], dim=1) for c in (condition, torch.zeros_like(condition))
            )
        if guidance_scale == 1:
            return self.unet(model_input.to(dtype), t_on_device, class_labels).sample
        labels = None
        if class_labels is not None:
            no_class = torch.full_like(class_labels, self._network.config.num_class_embeds - 1)
            labels = torch.cat([class_labels, no_class])
        twice = self.unet(torch.cat([model_input, without]).to(dtype), t_on_device, labels).sample
        with_both, with_none = twice.float().chunk(2)
        channels = latents.shape[1]  # a learned variance follows them
        guided = torch.lerp(with_none[:, :channels], with_both[:, :channels], guidance_scale)
        return torch.cat([guided, with_both[:, channels:]], dim=1)

    def _alpha_cumprod(self, t: int | torch.Tensor) -> torch.Tensor:
        """alpha-bar of a timestep, or for -1 of where the last step goes to."""
        return self.scheduler.alphas_cumprod[t] if t >= 0 else self.scheduler.final_alpha_cumprod

    def _add_noise(self, image, noise, t) -> torch.Tensor:
        """The image, in [-1, 1], with the noise of a timestep; -1 is the image itself."""
        return image if t < 0 else self.scheduler.add_noise(image, noise, torch.as_tensor(t).view(1))

    def _check_grid(self, num_inference_steps, timesteps):
        check_integer("num_inference_steps", num_inference_steps, 1)
        if timesteps is not None:
            self._check_taken_by("set_timesteps", "timesteps", timesteps)
            if not isinstance(timesteps, list | tuple | np.ndarray | torch.Tensor):
                raise TypeError(f"`timesteps` must be a list of integers, but is {timesteps!r}.")

    def _check_step_arguments(self, eta: Any, use_clipped_model_output: Any):
        if eta is not None:
            check_number("eta", eta, 0.0, 1.0)
            self._check_taken_by("step", "eta", eta)
        if use_clipped_model_output is not None:
            check_bool("use_clipped_model_output", use_clipped_model_output)
            self._check_taken_by("step", "use_clipped_model_output", use_clipped_model_output)

    def _check_taken_by(self, method: str, name: str, value: Any):
        if not takes(getattr(self.scheduler, method), name):
            raise ValueError(f"`{name}` is {value!r}, but `{method}` of {type(self.scheduler).__name__} takes none.")

    def _check_output_type(self, output_type: Any):
        check_choice("output_type", output_type, OUTPUT_TYPES)
        channels = self.image_channels
        if output_type == "pil" and channels not in (1, 3, 4):
            raise ValueError(f"`output_type` 'pil' needs 1, 3 or 4 channels, but the UNet has {channels}; use 'np'.")

    def _check_method_of_scheduler(self, name: str, value: Any, needed: str):
        if not hasattr(self.scheduler, needed):
            raise ValueError(
                f"`{name}` is {value!r}, but {type(self.scheduler).__name__} has no `{needed}`; use EtaDDIMScheduler."
            )

    def _check_scheduler_does_not_clip(self):
        for name in ("clip_sample", "thresholding"):
            if getattr(self.scheduler.config, name, False):
                raise ValueError(
                    f"`{name}` is True in the scheduler's config, and clipping cannot be inverted: set `pipe.scheduler "
                    f"= EtaDDIMScheduler.from_config(pipe.scheduler.config, {name}=False)` for it and for sampling."
                )

    def _check_scheduler_has_no_history(self, name: str, value: Any, timesteps: Any):
        config = self.scheduler.config
        is_fitted = getattr(config, "timestep_spacing", None) == "fitted" and timesteps is None
        if is_fitted or getattr(config, "solver_order", 1) > 1:
            raise ValueError(
                f"`{name}` {value!r} needs steps without a history: set `pipe.scheduler = EtaDDIMScheduler.from_config("
                "pipe.scheduler.config, solver_order=1, timestep_spacing='trailing')` for it and for sampling."
            )

    def _image_size(self, height: Any, width: Any, latents: torch.Tensor | None = None) -> tuple[int, int]:
        """Height and width: what is given, or the UNet's, or that of the latents if it has none."""
        size = self._network.config.sample_size
        if size is None and latents is not None:
            size = tuple(latents.shape[-2:])
        size = (size, size) if isinstance(size, int) or size is None else size
        given = [value if other is None else other for value, other in zip(size, (height, width), strict=True)]
        factor = 2 ** (len(self._network.config.down_block_types) - 1)
        for name, value in zip(("height", "width"), given, strict=True):
            if value is None:
                raise ValueError(f"`{name}` or `latents` must be given: the UNet's `sample_size` is None.")
            check_integer(name, value, 1)
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

    def _to_condition(self, condition: Any, size: tuple[int, int], batch_size: int) -> torch.Tensor | None:
        """The condition in [-1, 1], scaled to the images' size and repeated for each of them."""
        channels = self.condition_channels
        if (condition is None) != (channels == 0):
            raise ValueError(
                f"`condition` must be given exactly if the UNet takes more channels than it returns, but it takes "
                f"{self._network.config.in_channels}, returns {self._network.config.out_channels}, and `condition` is "
                f"{'None' if condition is None else 'given'}."
            )
        if condition is None:
            return None
        condition = to_tensor("condition", condition, channels)
        height, width = condition.shape[-2:]
        if abs(height * size[1] - width * size[0]) > 0.01 * width * size[0]:
            raise ValueError(f"`condition` must have the proportions of {size}, but its size is {height, width}.")
        if len(condition) not in (1, batch_size):
            raise ValueError(f"`condition` must hold one image or `batch_size` = {batch_size}, not {len(condition)}.")
        scaled = torch.stack([scale_to(image, *size) for image in condition])
        return 2 * scaled.to(self._execution_device).expand(batch_size, -1, -1, -1) - 1

    def _check_class_labels(self, class_labels, guidance_scale, batch_size):
        if (class_labels is None) != (self._network.class_embedding is None):
            raise ValueError(
                f"`class_labels` must be given exactly if the UNet is class-conditional, but are {class_labels!r}."
            )
        number = self._network.config.num_class_embeds
        if class_labels is not None:
            labels = to_labels(class_labels)
            if len(labels) != batch_size:
                raise ValueError(
                    f"`class_labels` must hold `batch_size` = {batch_size} labels, but are {class_labels!r}."
                )
            if number is not None and not ((labels >= 0) & (labels < number)).all():
                raise ValueError(f"`class_labels` must be in 0..{number - 1}, but are {class_labels!r}.")
        check_number("guidance_scale", guidance_scale)
        can_leave_out = self.condition_channels if class_labels is None else number is not None
        if guidance_scale != 1 and not can_leave_out:
            raise ValueError(
                f"`guidance_scale` is {guidance_scale}, but the UNet has no `num_class_embeds` classes and no "
                "condition to guide to."
            )

    def _check_finite(self, name: str, tensor: torch.Tensor):
        """Refuses a result that would be a black picture; one wait for the device, at the end of all steps."""
        is_finite = tensor.isfinite().flatten(1).all(1)
        bad = int((~is_finite).sum())
        if not bad:
            return
        weights = [key for key, w in self._network.named_parameters() if not (w.is_meta or w.isfinite().all())]
        if weights:
            reason = f"{len(weights)} of the UNet's weights are not either, the first is {weights[0]!r}"
        else:
            reason = f"something that the UNet was given or computed is not; its weights are, in {self._network.dtype}"
        raise ValueError(f"{bad} of {len(is_finite)} {name} are not finite: {reason}.")
