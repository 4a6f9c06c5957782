# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
N images of a pipeline as PNG files, shared over all processes and machines. Images of other than 1, 3 or 4 channels,
which no PNG shows, become arrays: .npy files, float32 (H, W, C) in [0, 1], which the training reads.

Image k depends on the seed and k alone, whichever process makes it. A run that was stopped goes on where it was, and
`settings.json` keeps images of other settings out of the folder.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image
import torch
from accelerate import PartialState
from diffusers import DDIMScheduler, SchedulerMixin, UNet2DModel
from tqdm.auto import tqdm

from . import EtaDDIMPipeline, EtaDDIMScheduler, EtaFlowMatchScheduler, image_generators
from .image_files import center_crop
from .image_folders import ImageReader, find_images

PICTURE_CHANNELS = (1, 3, 4)  # gray, colour, colour with alpha
SETTINGS = "settings.json"


def generate_images(
    pipeline: EtaDDIMPipeline,
    output_dir: Path,
    num_images: int,
    *,
    name: str,
    batch_size: int = 64,
    num_inference_steps: int = 50,
    eta: float = 0.0,
    seed: int = 0,
    num_classes: int | None = None,
    class_labels: Sequence[int] | None = None,
    guidance_scale: float = 1.0,
    conditions: Sequence[torch.Tensor] | None = None,
    state: PartialState | None = None,
) -> int:
    """
    Writes the images `000000.png` (or `.npy`) and so on that are missing in a folder. All processes call it, on a
    folder that they share; each makes its part of the batches.

    Args:
        pipeline: Makes the images; it is moved to the device of the process, and its progress bar is turned off.
        output_dir: A new or empty folder, or one with images of the same settings and weights.
        num_images: Number of images in the folder at the end, over all processes.
        name: What the pipeline is called in the record of the settings; it may have another one when a run goes on.
        batch_size: Images for each process and call of the model. Another one may round a pixel the other way.
        num_inference_steps, eta, seed: As of the call of the pipeline.
        num_classes: Number of classes that the images take in turn; if not given, all that the model has but its last,
            which means no class.
        class_labels: The classes that the images take in turn, instead.
        guidance_scale: As of the call of the pipeline.
        conditions: What the images are made from, in turn, as `read_conditions` gives it.
        state: The processes, made if not given.

    Returns:
        The number of images that this process made.

    Raises:
        ValueError: If the folder holds anything else or the model has fewer classes (nothing was written then), or if
            images are not finite.
    """
    state = PartialState() if state is None else state
    rank, is_main = state.process_index, state.is_main_process

    # 1. everything that can be refused, before anything is written
    suffix = ".png" if pipeline.image_channels in PICTURE_CHANNELS else ".npy"
    pipeline.scheduler.set_timesteps(num_inference_steps)  # refuses what it cannot do
    num_embeds = pipeline.unet.config.num_class_embeds
    if num_classes and num_classes > (num_embeds or 0):
        raise ValueError(f"`num_classes` is {num_classes}, but the UNet has {num_embeds or 0} classes.")
    given = range(num_classes) if num_classes and class_labels is None else class_labels
    turns = classes_in_turn(pipeline.unet, given, guidance_scale)
    num_classes = None if turns is None or class_labels is not None else len(turns)
    settings: dict[str, Any] = {} if class_labels is None else {"class_labels": turns}
    settings |= {} if guidance_scale == 1 else {"guidance_scale": guidance_scale}
    settings |= {} if conditions is None else {"conditions": _digest(enumerate(conditions))}
    settings |= {"num_classes": num_classes, "pipeline": name, "num_inference_steps": num_inference_steps, "eta": eta}
    settings |= {"scheduler": type(pipeline.scheduler).__name__, "seed": seed}
    settings |= {"dtype": str(pipeline.dtype).removeprefix("torch."), "weights": weights_digest(pipeline.unet)}
    config = {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    settings |= {f"scheduler_config.{key}": value for key, value in json.loads(json.dumps(config)).items()}
    check_output_dir(output_dir, num_images, settings, suffix)
    state.wait_for_everyone()
    if is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        try:
            with (output_dir / SETTINGS).open("x") as file:
                file.write(json.dumps(settings, indent=2) + "\n")
        except FileExistsError:
            pass
    state.wait_for_everyone()
    check_output_dir(output_dir, num_images, settings, suffix)  # another run may have been the first

    # 2. the batches are the same ones in every run, so that rounding is as well; each process has its share of them
    batches = [range(first, min(first + batch_size, num_images)) for first in range(0, num_images, batch_size)]
    batches = batches[rank :: state.num_processes]
    missing = {k for batch in batches for k in batch if not image_path(output_dir, k, suffix).is_file()}
    pipeline.to(state.device)
    pipeline.set_progress_bar_config(disable=True)
    share = "Images" if state.num_processes == 1 else f"Images of process 1 of {state.num_processes}"
    progress = tqdm(total=len(missing), desc=share, disable=not is_main)
    start = time.perf_counter()
    for batch in batches:
        if missing.isdisjoint(batch):
            continue
        images = pipeline(
            batch_size=len(batch),
            num_inference_steps=num_inference_steps,
            eta=eta,
            generator=image_generators(seed, batch),
            class_labels=None if turns is None else [turns[k % len(turns)] for k in batch],
            guidance_scale=guidance_scale,
            condition=in_turn(conditions, batch),
            output_type="np",
        ).images
        for k, image in zip(batch, images, strict=True):
            if k in missing:
                if suffix == ".npy":
                    save: Callable[[IO[bytes]], Any] = partial(np.save, arr=image)
                else:
                    save = partial(pipeline.numpy_to_pil(image)[0].save, format="png")
                write(image_path(output_dir, k, suffix), rank, save)
                progress.update()
    progress.close()
    seconds = time.perf_counter() - start

    # 3. exactly N files
    state.wait_for_everyone()
    if is_main:
        for path in output_dir.glob("unfinished-*"):
            path.unlink(missing_ok=True)
        made = f"this process made {len(missing)} of them in {seconds:.1f} s"
        print(f"{num_images} images are in {output_dir}; {made}")
    state.wait_for_everyone()
    return len(missing)


def use_scheduler(pipeline: EtaDDIMPipeline, scheduler_class: type[SchedulerMixin], **changes: Any):
    """
    Gives a pipeline another sampler, with the config of the one that it has.

    Args:
        pipeline: The pipeline, which is changed.
        scheduler_class: `EtaDDIMScheduler`, or diffusers' `DDIMScheduler` for a comparison.
        changes: Keys of the config that get another value.

    Raises:
        ValueError: If the model predicts its variance, and the sampler knows no such thing.
    """
    config = pipeline.unet.config
    if scheduler_class is DDIMScheduler and config.out_channels != config.in_channels:
        raise ValueError(f"`scheduler` DDIMScheduler knows no learned variance, as in {pipeline.name_or_path}.")
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **changes)


def use_order_1(pipeline: EtaDDIMPipeline):
    """
    Gives a pipeline steps that keep no history, for every number of steps and every eta: those of order 1, in the place
    of fitted ones on `trailing` or, of a flow model, on its own grid. A scheduler that is not of this package stays.
    """
    if isinstance(pipeline.scheduler, EtaFlowMatchScheduler):
        use_scheduler(pipeline, type(pipeline.scheduler), solver_order=1, use_fitted_sigmas=False)
    elif isinstance(pipeline.scheduler, EtaDDIMScheduler):
        spacing = pipeline.scheduler.config.timestep_spacing
        spacing = "trailing" if spacing == "fitted" else spacing
        use_scheduler(pipeline, type(pipeline.scheduler), solver_order=1, timestep_spacing=spacing)


def read_conditions(
    condition_dir: str | Path | None, pipeline: EtaDDIMPipeline, number: int | None = None
) -> list[torch.Tensor] | None:
    """
    The pictures that a model makes images from, read as for its training: scaled to cover the size of the images, and
    cut in the middle.

    Args:
        condition_dir: Folder (with its sub-folders) or zip archive of them; None for a model without a condition.
        pipeline: The model, whose UNet has a `sample_size`.
        number: Only the first ones, in the order of their paths.

    Returns:
        uint8, or float32 in [0, 1], (C', H, W) each; None for a model without a condition.

    Raises:
        ValueError: If the model has a condition and no folder is given, or the other way round, or if there are no
            pictures, some cannot be read, or have other channels.
    """
    channels, name = pipeline.condition_channels, pipeline.name_or_path
    if condition_dir is None and channels:
        raise ValueError(
            f"`condition_dir` is needed: the model of {name} makes images from pictures of {channels} channels."
        )
    if condition_dir is None:
        return None
    if not channels:
        raise ValueError(f"`condition_dir` is {condition_dir}, but the model of {name} has no condition.")
    items = find_images(condition_dir).items[:number]
    if not items:
        raise ValueError(f"`condition_dir` holds no pictures: {condition_dir}")
    _, *size = image_shape(pipeline.unet)
    reader = ImageReader(items, "condition", channels=channels, size=(size[0], size[1]))
    conditions = []
    for index, pixels in reader.read_all():
        if len(pixels) != channels and (len(pixels), channels) != (1, 3):
            raise ValueError(f"The condition {reader.name(index)} has {len(pixels)} channels, not {channels}.")
        conditions.append(center_crop(pixels, *size).expand(channels, -1, -1))
    return conditions


def in_turn(conditions: Sequence[torch.Tensor] | torch.Tensor | None, indices: Iterable[int]) -> torch.Tensor | None:
    """
    The `condition` of a call of the pipeline for the images of some numbers, (B, C', H, W) in [0, 1].

    Args:
        conditions: As `read_conditions` gives it; image k is made from number k, and begins again after the last.
        indices: The numbers of B images.
    """
    if conditions is None:
        return None
    chosen = [conditions[k % len(conditions)] for k in indices]
    return torch.stack([picture / 255 if picture.dtype == torch.uint8 else picture for picture in chosen])


def write_npz(output_dir: Path, num_images: int, path: Path):
    """Puts the images of a folder into one file: `arr_0`, (N, H, W, C), uint8, or float32 where they are arrays."""
    if image_path(output_dir, 0, ".npy").is_file():
        arrays = [np.load(image_path(output_dir, k, ".npy")) for k in range(num_images)]
    else:
        arrays = [np.asarray(PIL.Image.open(image_path(output_dir, k))) for k in range(num_images)]
    stacked = np.stack(arrays).reshape(len(arrays), *arrays[0].shape[:2], -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, 0, lambda file: np.savez(file, stacked))


def picture_grid(pictures: Sequence[PIL.Image.Image], rows: int, columns: int) -> PIL.Image.Image:
    """Pictures of one size and mode, row by row, as one of that mode; places that are left over are black or clear."""
    width, height = pictures[0].size
    grid = PIL.Image.new(pictures[0].mode, (columns * width, rows * height))
    for k, picture in enumerate(pictures):
        grid.paste(picture, (k % columns * width, k // columns * height))
    return grid


def check_makes_pictures(unet: UNet2DModel, name: str):
    """
    Refuses a model whose images no PNG shows.

    Args:
        unet: The model.
        name: What it is called in the message.

    Raises:
        ValueError: If it has not 1, 3 or 4 channels.
    """
    channels = _image_channels(unet)
    if channels not in PICTURE_CHANNELS:
        raise ValueError(
            f"The model of {name} makes images of {channels} channels, but pictures have {PICTURE_CHANNELS}: take the "
            'arrays that EtaDDIMPipeline returns by `output_type="np"`.'
        )


def image_shape(unet: UNet2DModel) -> tuple[int, int, int]:
    """
    Channels, height and width of the images of a model.

    Raises:
        ValueError: If its config has no `sample_size`.
    """
    size: int | Sequence[int] | None = unet.config.sample_size
    if size is None:
        raise ValueError("The UNet must have a `sample_size`.")
    height, width = (size, size) if isinstance(size, int) else size
    return (
        min(unet.config.in_channels, unet.config.out_channels),
        height,
        width,
    )  # one may be of more: see EtaDDIMPipeline


def _image_channels(unet: UNet2DModel) -> int:
    """Without those of a condition, which are taken, or of a learned variance, which are returned."""
    return min(unet.config.in_channels, unet.config.out_channels)


def classes_in_turn(
    unet: UNet2DModel, class_labels: Sequence[int] | None = None, guidance_scale: float = 1.0
) -> list[int] | None:
    """
    The classes that images take in turn, None for a model without classes.

    Args:
        unet: The model.
        class_labels: Those asked for; if not given, all that the model has but its last, which means no class.
        guidance_scale: As of the call of the pipeline.

    Raises:
        ValueError: If the model has no such class, or neither classes nor a condition to guide to.
    """
    number = unet.config.num_class_embeds
    if number is None and class_labels is not None:
        raise ValueError(f"`class_labels` is {[*class_labels]}, but the UNet has no classes.")
    if number is None and guidance_scale != 1 and unet.config.in_channels <= unet.config.out_channels:
        raise ValueError(f"`guidance_scale` is {guidance_scale}, but the UNet has no classes and no condition.")
    if number is None:
        return None
    turns = list(range(max(1, number - 1)) if class_labels is None else class_labels)
    if not turns or not all(0 <= label < number for label in turns):
        raise ValueError(f"`class_labels` must be in 0..{number - 1}, but are {turns}.")
    return turns


def weights_digest(unet: UNet2DModel) -> str:
    """SHA-256 of the weights: a model that was trained further has another one."""
    return _digest(sorted(unet.state_dict().items()))


def _digest(tensors: Iterable[tuple[Any, torch.Tensor]]) -> str:
    """SHA-256 of tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(str(name).encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def image_path(output_dir: Path, k: int, suffix: str = ".png") -> Path:
    """The file of image k."""
    return output_dir / f"{k:06d}{suffix}"


def check_output_dir(output_dir: Path, num_images: int, settings: dict[str, Any], suffix: str = ".png"):
    """
    Refuses a folder that holds anything but images of the same settings.

    Args:
        output_dir: The folder, which need not be there yet.
        num_images: Number of images that may be in it.
        settings: Those of the images, as JSON has them; the value of `pipeline` may differ.
        suffix: The ending of the images.

    Raises:
        ValueError: If so, naming the setting.
    """
    record = output_dir / SETTINGS
    names = {path.name for path in output_dir.glob("*") if not path.name.startswith("unfinished-")}
    if names and not record.is_file():
        raise ValueError(f"`output_dir` holds other files and no {SETTINGS}: {output_dir}")
    if record.is_file():
        try:
            former = dict(json.loads(record.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{record} cannot be read, take another folder or delete it: {error}") from error
        # the model may lie elsewhere by now: its weights tell which it is
        for name in sorted((former.keys() | settings.keys()) - {"pipeline"}):
            if former.get(name) != settings.get(name):
                raise ValueError(
                    f"`{name}` is {settings.get(name)!r}, but {former.get(name)!r} for the images in {output_dir}: "
                    "take another folder, or delete it."
                )
    surplus = names - {SETTINGS, *(image_path(output_dir, k, suffix).name for k in range(num_images))}
    if surplus:
        raise ValueError(f"`output_dir` holds more than {num_images} images and {SETTINGS}: {sorted(surplus)[:3]}")


def write(path: Path, rank: int, save: Callable[[IO[bytes]], Any]):
    """Lets `save` write to a file of another name and renames it, so that one with a proper name is whole."""
    unfinished = path.with_name(f"unfinished-{rank}-{os.getpid()}")
    with unfinished.open("wb") as file:
        save(file)
    try:
        unfinished.replace(path)
    except FileNotFoundError:  # another run in this folder was the first to end, and has cleaned up
        if not path.is_file():
            raise
