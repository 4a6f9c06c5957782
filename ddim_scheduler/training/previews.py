# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""What a run shows of its model while it trains: pictures, and the distance of its images from the data."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from .. import EtaDDIMPipeline, EtaDDIMScheduler, image_generators
from ..command_line import import_extra
from ..evaluation import extract_features, frechet_distance, kernel_distance, load_network
from ..generation import PICTURE_CHANNELS, picture_grid
from .images import ImageDataset
from .trackers import log_preview

logger = get_logger(__name__, log_level="INFO")


@contextlib.contextmanager
def trained_pipeline(
    unet: UNet2DModel, noise_scheduler: EtaDDIMScheduler, ema: EMAModel | None = None
) -> Iterator[EtaDDIMPipeline]:
    """
    A pipeline of the model as it is now, in evaluation mode, until the training goes on.

    Args:
        unet: The model, not as accelerate wraps it.
        noise_scheduler: Its config is that of the sampler.
        ema: If given, the model has these averaged weights meanwhile.
    """
    if ema is not None:
        ema.store(unet.parameters())
        ema.copy_to(unet.parameters())
    unet.eval()
    pipeline = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler.from_config(noise_scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield pipeline
    finally:
        unet.train()
        if ema is not None:
            ema.restore(unet.parameters())


def sample_images(
    accelerator: Accelerator,
    pipeline: EtaDDIMPipeline,
    num_images: int,
    class_labels: Sequence[int] | None = None,
    *,
    batch_size: int = 64,
    num_inference_steps: int = 50,
    seed: int = 0,
    conditions: torch.Tensor | None = None,
    on_step: Callable[[], Any] | None = None,
) -> torch.Tensor:
    """
    Images made by all processes, which all call it. Image k depends on (seed, k), its class and its condition alone, so
    that it is the same each time and for any number of processes.

    Args:
        accelerator: Says which images are this process's, and gathers those of all.
        pipeline: Makes them, by DDIM.
        num_images: Number over all processes.
        class_labels: Taken by turns, for a model with classes.
        batch_size: Images at once, over all processes.
        num_inference_steps: Steps of the sampler.
        seed: Of the set of images.
        conditions: Taken by turns, (N, C', H, W) in [0, 1], for a model that takes them.
        on_step: Called after each step of each batch.

    Returns:
        All images, uint8 (N, C, H, W), in each process.
    """
    images = []
    for start in range(0, num_images, batch_size):
        size = min(batch_size, num_images - start)
        share = math.ceil(size / accelerator.num_processes)  # if it is rounded up, the last ones are dropped
        indices = range(start + accelerator.process_index * share, start + (accelerator.process_index + 1) * share)
        mine = pipeline(
            batch_size=share,
            num_inference_steps=num_inference_steps,
            generator=image_generators(seed, indices),
            class_labels=None if class_labels is None else [class_labels[k % len(class_labels)] for k in indices],
            condition=None if conditions is None else conditions[[k % len(conditions) for k in indices]],
            output_type="pt",
            callback_on_step_end=None if on_step is None else lambda *_: on_step() or {},
        ).images
        images.append(accelerator.gather((mine * 255).round().byte())[:size].cpu())
    return torch.cat(images)


def conditions_of(dataset: ImageDataset, number: int) -> torch.Tensor | None:
    """The conditions of so many images of a data set, or all, (N, C', H, W) in [0, 1]; None if it has none."""
    if not dataset.condition_channels:
        return None
    return torch.stack([dataset[k][2] / 2 + 0.5 for k in range(min(number, len(dataset)))])


def save_preview(accelerator: Accelerator, output_dir: str | Path, images: torch.Tensor, step: int):
    """
    Writes images as one PNG, `samples/step-N.png` and `sample.png`, and to the tracker. For the main process. Those of
    other than 1, 3 or 4 channels, which no PNG shows, become an array `samples/step-N.npy` alone.

    Args:
        accelerator: Has the tracker.
        output_dir: The folder of the run.
        images: uint8 (N, C, H, W).
        step: Number of optimizer steps done.
    """
    path = Path(output_dir, "samples", f"step-{step:06d}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = images.permute(0, 2, 3, 1).numpy()
    if images.shape[1] not in PICTURE_CHANNELS:
        np.save(path.with_suffix(".npy"), pixels)
        return
    columns = max(d for d in range(1, math.isqrt(len(images)) + 1) if len(images) % d == 0)
    grid = picture_grid(EtaDDIMPipeline.numpy_to_pil(pixels / 255), len(images) // columns, columns)
    grid.save(path)
    grid.save(Path(output_dir, "sample.png"))  # the picture of the model card
    log_preview(accelerator, images[:, :3], grid, step)


def distances_to(
    dataset: ImageDataset,
    eval_features: str,
    eval_weights: str | Path | None = None,
    *,
    eval_num_images: int,
    device: str | torch.device = "cpu",
) -> Callable[[torch.Tensor], dict[str, float]]:
    """
    Takes the features of the training images, in 8 bits, cropped and mirrored as in the first epoch.

    Args:
        dataset: The training images, gray or colour.
        eval_features, eval_weights: As `features` and `weights` of `evaluation.load_network`.
        eval_num_images: How many images will be compared with them.
        device: Where features are computed.

    Returns:
        A function from generated images, uint8 (N, C, H, W), to their `eval/frechet` and `eval/kernel` distances, the
        latter alone where there are not more images, or training images, than features.

    Raises:
        ValueError: If a package or the weights are missing, or there are fewer than 4 images or wrong channels.
    """
    try:
        import_extra("torchmetrics", "eval")
    except ImportError as error:
        raise ValueError(f"`eval_every` {error}") from error
    if dataset.channels not in (1, 3):
        raise ValueError(f"`eval_every` needs gray or colour images, but these have {dataset.channels} channels.")
    try:
        with torch.random.fork_rng(devices=[]):  # a network draws weights before it loads others
            network = load_network(eval_features, eval_weights, device)
    except Exception as error:
        raise ValueError(f"`eval_features` {eval_features!r} cannot be loaded: {error}") from error
    counts = f"`eval_num_images` is {eval_num_images} and {len(dataset)} images are trained on"
    smaller = min(eval_num_images, len(dataset))
    if smaller < 4:
        raise ValueError(f"`eval_every` needs 4 images for the kernel distance, but {counts}.")
    if smaller <= network.num_features:
        logger.warning(
            f"No Fréchet distance, the kernel distance alone: {network.num_features} features need more images, but "
            f"{counts}."
        )
    images = torch.stack(
        [((image + 1) * 127.5).round().byte() for image, *_ in map(dataset.__getitem__, range(len(dataset)))]
    )
    reference = extract_features(images, network)

    def distances(images: torch.Tensor) -> dict[str, float]:
        features = extract_features(images, network)
        found = {} if smaller <= network.num_features else {"eval/frechet": frechet_distance(features, reference)}
        return {**found, "eval/kernel": kernel_distance(features, reference)[0]}

    return distances
