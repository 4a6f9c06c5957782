# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""One model, sampled as people ask for it: a scheduler for each request, one network for all."""

import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor

from .. import EtaDDIMPipeline, EtaDDIMScheduler, image_generators
from ..generation import check_makes_pictures, image_shape
from ..scheduling_ddim import TIMESTEP_SPACINGS
from ..validation import check_bool, check_choice, check_integer, check_number
from .runs import Runs

OURS = "EtaDDIM"
SAMPLERS: dict[str, type[SchedulerMixin]] = {
    OURS: EtaDDIMScheduler,
    "diffusers' DDIM": DDIMScheduler,
    "DPM-Solver++": DPMSolverMultistepScheduler,
    "UniPC": UniPCMultistepScheduler,
}
WITH_ETA = (OURS, "diffusers' DDIM")
FITTED = "fitted"
MAX_IMAGES = 64
KEPT_REFERENCES = 16

Report = Callable[[int, int], None]  # of steps done and all steps; what it raises ends the run


def no_report(done: int, total: int):
    """For who does not want to know."""


@dataclass(frozen=True)
class Settings:
    """
    How images are drawn. The last three change the model's own scheduler; None leaves it as it is.

    Args:
        seed: Seed of the images, at least 0; image k depends on it and k alone.
        num_images: Number of images, in 1..64.
        num_inference_steps: Number of steps, in 1..T.
        eta: eta of the paper's eq. (16), in [0, 1].
        class_label: Class of all images of a class-conditional model; None takes the classes in turn.
        guidance_scale: Of classifier-free guidance.
        sampler: A key of `SAMPLERS`.
        timestep_spacing: Grid of the timesteps.
        clip: Whether the predicted x_0 is clipped, in the way of the model's scheduler if that clips.
    """

    seed: int = 0
    num_images: int = 16
    num_inference_steps: int = 20
    eta: float = 0.0
    class_label: int | None = None
    guidance_scale: float = 1.0
    sampler: str = OURS
    timestep_spacing: str | None = None
    clip: bool | None = None


@dataclass(frozen=True)
class Samples:
    """
    What a run made.

    Args:
        images: (B, C, H, W) in [0, 1].
        seconds: Of the whole run.
        timesteps: The timesteps of its steps, each one call of the network.
        predictions: Of our sampler and DDIM: the x_0 predicted at each, (N, B, C, H, W) in [0, 1].
    """

    images: torch.Tensor
    seconds: float
    timesteps: list[int]
    predictions: torch.Tensor | None


class WatchedPipeline(EtaDDIMPipeline):
    """A pipeline that reports its steps, in place of the bar in a terminal."""

    report: Report = staticmethod(no_report)

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Iterator[Any]:
        steps = list(iterable or [])
        for done, step in enumerate(steps):
            self.report(done, len(steps))
            yield step


class Model:
    """
    A model that several people sample at once.

    Args:
        pipeline: Its network and scheduler, which stay as they are.
        name: The folder or Hub id that it was loaded from.

    Raises:
        ValueError: If its images are no pictures, their size is unknown, or it needs a condition for each.
    """

    def __init__(self, pipeline: EtaDDIMPipeline, name: str):
        if pipeline.condition_channels:
            channels = pipeline.condition_channels
            raise ValueError(f"The model of {name} needs a condition of {channels} channels, which the page has not.")
        check_makes_pictures(pipeline.unet, name)
        self.shape = image_shape(pipeline.unet)
        self.unet, self.config, self.name = pipeline.unet, pipeline.scheduler.config, name
        self.references: OrderedDict[Settings, torch.Tensor] = OrderedDict()
        self.runs = Runs()

    @property
    def num_train_timesteps(self) -> int:
        return self.config.num_train_timesteps

    @property
    def num_classes(self) -> int:
        """Classes that can be asked for: all of the UNet's but the last, which means no class; 0 if it has none."""
        num_embeds = self.unet.config.num_class_embeds
        return max(1, num_embeds - 1) if num_embeds else 0

    @property
    def clips(self) -> bool:
        return self.config.clip_sample or self.config.thresholding

    @property
    def samplers(self) -> list[str]:
        """The keys of `SAMPLERS` that sample this model: others than ours know no learned variance."""
        return [OURS] if self.unet.config.out_channels != self.shape[0] else [*SAMPLERS]

    @property
    def spacings(self) -> list[str]:
        return [*TIMESTEP_SPACINGS, *([FITTED] if self.fitted_steps else [])]

    @property
    def fitted_steps(self) -> list[int]:
        """The numbers of steps that a sampler was fitted for."""
        return sorted(int(steps) for steps in self.config.get("fitted_tables") or {})

    @property
    def plain_spacing(self) -> str:
        """The model's own grid if it is for any number of steps and any eta."""
        spacing = self.config.timestep_spacing
        return "trailing" if spacing == FITTED else spacing

    def changes(self, settings: Settings) -> dict[str, Any]:
        """Keys of the scheduler's config that get another value."""
        changes: dict[str, Any] = {}
        if settings.timestep_spacing is not None:
            changes["timestep_spacing"] = settings.timestep_spacing
        if settings.clip is not None and settings.clip != self.clips:
            changes |= {"clip_sample": True} if settings.clip else {"clip_sample": False, "thresholding": False}
        if settings.sampler in ("DPM-Solver++", "UniPC"):
            changes["solver_order"] = 2  # theirs, not that of ours
        return {key: value for key, value in changes.items() if self.config.get(key) != value}

    def pipeline(self, settings: Settings, report: Report = no_report) -> WatchedPipeline:
        """A pipeline with a scheduler of its own."""
        check_choice("sampler", settings.sampler, tuple(SAMPLERS))
        scheduler_class = SAMPLERS[settings.sampler]
        if settings.sampler not in self.samplers:
            raise ValueError(f"`sampler` is {settings.sampler!r}, which knows no learned variance as this model has.")
        pipeline = WatchedPipeline(self.unet, EtaDDIMScheduler.from_config(self.config))
        pipeline.scheduler = scheduler_class.from_config(self.config, **self.changes(settings))
        pipeline.report = report
        return pipeline

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """What a call, an inversion and an interpolation are given alike."""
        label, labels = settings.class_label, None
        if self.num_classes:
            labels = [k % self.num_classes if label is None else label for k in range(settings.num_images)]
        return {
            "num_inference_steps": settings.num_inference_steps,
            "class_labels": labels,
            "guidance_scale": settings.guidance_scale,
        }

    def check(self, settings: Settings):
        """Refuses what cannot be sampled, naming the setting."""
        check_integer("seed", settings.seed, 0)
        check_integer("num_images", settings.num_images, 1, MAX_IMAGES)
        check_integer("num_inference_steps", settings.num_inference_steps, 1, self.num_train_timesteps)
        check_number("eta", settings.eta, 0.0, 1.0)
        check_choice("sampler", settings.sampler, tuple(SAMPLERS))
        if settings.eta and settings.sampler not in WITH_ETA:
            raise ValueError(f"`eta` is {settings.eta}, but {settings.sampler} is deterministic: it must be 0.")
        if settings.timestep_spacing is not None:
            check_choice("timestep_spacing", settings.timestep_spacing, tuple(self.spacings))
        if settings.clip is not None:
            check_bool("clip", settings.clip)
        if settings.class_label is not None:
            if not self.num_classes:
                raise ValueError(f"`class_label` is {settings.class_label!r}, but the model has no classes.")
            check_integer("class_label", settings.class_label, 0, self.num_classes - 1)
        self.pipeline(settings).scheduler.set_timesteps(settings.num_inference_steps)  # knows its grids best


def sample(model: Model, settings: Settings, report: Report = no_report) -> Samples:
    """
    Draws images.

    Args:
        model: The model.
        settings: How.
        report: Told of each step.

    Raises:
        ValueError, TypeError: For a setting that is out of its range, before any work is done.
    """
    model.check(settings)
    pipeline = model.pipeline(settings, report)
    predictions = keep_predictions(pipeline.scheduler)
    # the generators draw x_T first, as with `seed`; UniPC takes none for its steps
    generators = image_generators(settings.seed, range(settings.num_images))
    latents = randn_tensor((settings.num_images, *model.shape), generators, model.unet.device, torch.float32)
    with_eta = {"eta": settings.eta, "generator": generators} if settings.sampler in WITH_ETA else {}
    start = time.perf_counter()
    images = pipeline(latents=latents, output_type="pt", **with_eta, **model.arguments(settings)).images
    return Samples(
        images=images.cpu(),
        seconds=time.perf_counter() - start,
        timesteps=pipeline.scheduler.timesteps.tolist(),
        predictions=torch.stack(predictions) if predictions else None,
    )


def keep_predictions(scheduler: Any) -> list[torch.Tensor]:
    """The list to which each step of a scheduler adds the x_0 that it predicts, in [0, 1], if it tells one."""
    predictions: list[torch.Tensor] = []
    step = scheduler.step

    @functools.wraps(step)
    def step_and_keep(*args, **kwargs):
        result = step(*args, **kwargs)
        x_0 = getattr(result, "pred_original_sample", None)
        if x_0 is not None:
            predictions.append((x_0.float() / 2 + 0.5).clamp(0, 1).cpu())
        return result

    scheduler.step = step_and_keep
    return predictions


def exactly(model: Model, settings: Settings) -> Settings:
    """The settings with those of DDIM with all timesteps and eta = 0."""
    return replace(
        settings, num_inference_steps=model.num_train_timesteps, eta=0.0, sampler=OURS, timestep_spacing="leading"
    )


def reference(model: Model, settings: Settings, report: Report = no_report) -> torch.Tensor:
    """
    Where DDIM with all timesteps and eta = 0 ends from the same noise, (B, C, H, W) in [0, 1]. The last ones are kept.
    """
    key = exactly(model, settings)
    images = model.references.get(key)
    if images is None:
        images = sample(model, key, report).images
        model.references[key] = images
        while len(model.references) > KEPT_REFERENCES:
            model.references.popitem(last=False)
    return images


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square over the pixels of images in [0, 1]."""
    return (a - b).square().mean().sqrt().item()
