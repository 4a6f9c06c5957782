# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""From pictures to noise and back: interpolation, inversion with its round trip, variations and painting anew."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..validation import check_number
from .samplers import Model, Report, Settings, distance, no_report


@dataclass(frozen=True)
class RoundTrip:
    """
    A picture turned into noise, and the noise into a picture.

    Args:
        latents: The noise x_T, (1, C, H, W).
        image: The picture again, (1, C, H, W) in [0, 1].
        distance: Root mean square of the difference of the two pictures.
        largest: Its largest absolute value.
        model_calls: Calls of the network, of the inversion alone.
    """

    latents: torch.Tensor
    image: torch.Tensor
    distance: float
    largest: float
    model_calls: int


def invert(
    model: Model, picture: torch.Tensor, settings: Settings, method: str, report: Report = no_report
) -> RoundTrip:
    """
    The noise of a picture, and what is made from it.

    Args:
        model: The model. Its scheduler does not clip here, since clipping cannot be inverted.
        picture: (1, C, H, W) in [0, 1].
        settings: Steps, grid and class; `eta` is that of a noise record alone.
        method: As of `EtaDDIMPipeline.invert`.
        report: Told of each step, of the way up and then of the way down.

    Raises:
        ValueError, TypeError: For a setting that is out of its range, before any work is done.
    """
    settings = replace(settings, num_images=1, clip=False)
    model.check(settings)
    pipeline = model.pipeline(settings, report)
    shared = model.arguments(settings)
    noise: dict[str, Any] = {"eta": settings.eta or 1.0} if method == "noise_record" else {}
    seed = settings.seed if method == "noise_record" else None
    found = pipeline.invert(picture, method=method, seed=seed, **noise, **shared)
    if method == "o_belm":
        back = {"method": method, "prev_latents": found.prev_latents}
    else:
        back = {"eta": 0.0, "variance_noise": found.variance_noise} | noise
    image = pipeline(latents=found.latents, output_type="pt", **back, **shared).images.cpu()
    return RoundTrip(
        latents=found.latents.float().cpu(),
        image=image,
        distance=distance(image, picture),
        largest=(image - picture).abs().max().item(),
        model_calls=found.model_calls,
    )


def edit(
    model: Model,
    picture: torch.Tensor,
    mask: torch.Tensor | None,
    settings: Settings,
    strength: float,
    num_resamples: int = 1,
    report: Report = no_report,
) -> torch.Tensor:
    """
    Variations of a picture, or of a part of it.

    Args:
        model: The model.
        picture: (1, C, H, W) in [0, 1].
        mask: (1, 1, H, W) in [0, 1], 1 where the picture is painted anew; None for all of it.
        settings: How the variations are drawn, `num_images` of them.
        strength: How much of the picture is replaced, in (0, 1].
        num_resamples: How often each step within a mask is done.
        report: Told of each step.

    Returns:
        The variations, (B, C, H, W) in [0, 1].

    Raises:
        ValueError, TypeError: For a setting that is out of its range, before any work is done.
    """
    model.check(settings)
    check_number("strength", strength)  # None is that of a call without a picture
    return model.pipeline(settings, report)(
        batch_size=settings.num_images,
        image=picture,
        mask=mask,
        strength=strength,
        num_resamples=num_resamples if mask is not None else 1,
        eta=settings.eta,
        seed=settings.seed,
        output_type="pt",
        **model.arguments(settings),
    ).images.cpu()


def interpolate(
    model: Model,
    a: int | torch.Tensor,
    b: int | torch.Tensor,
    num_images: int,
    settings: Settings,
    report: Report = no_report,
) -> torch.Tensor:
    """
    The pictures on the way from one to another.

    Args:
        model: The model. For pictures its scheduler does not clip, since clipping cannot be inverted.
        a, b: The ends: a seed, or a picture (1, C, H, W) in [0, 1].
        num_images: Pictures on the way, both ends included.
        settings: Steps, grid and class.
        report: Told of each step; a picture at an end is inverted first.

    Returns:
        (num_images, C, H, W) in [0, 1].

    Raises:
        ValueError, TypeError: For a setting that is out of its range, before any work is done.
    """
    are_pictures = any(isinstance(end, torch.Tensor) for end in (a, b))
    settings = replace(settings, num_images=1, clip=False if are_pictures else settings.clip)
    model.check(settings)
    # a tensor would be taken for latents
    ends = [end.permute(0, 2, 3, 1).numpy() if isinstance(end, torch.Tensor) else end for end in (a, b)]
    pipeline = model.pipeline(settings, report)
    return pipeline.interpolate(*ends, num_images, output_type="pt", **model.arguments(settings)).images.cpu()
