# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""What a person is told before the first step, and how long the run will take."""

import time
from collections import Counter

import torch
from diffusers import UNet2DModel

from .images import ImageDataset

SHOWN_CLASSES = 20
TIMED_STEPS = 10


def describe_images(dataset: ImageDataset, held_out: ImageDataset | None = None) -> list[str]:
    """
    Number, shape and classes of the images that are trained on, and what was painted, cut, skipped or left out.

    Args:
        dataset: The images.
        held_out: Those of the validation loss.
    """
    where = "decoded in each epoch, for they do not fit in memory: see --dataloader_num_workers"
    if dataset.images is not None:
        where = f"{_bytes(dataset) / 1e6:.1f} MB in memory"
    height, width = dataset.resolution
    lines = [f"{len(dataset)} images of {dataset.channels} x {height} x {width} (channels, height, width), {where}"]
    if dataset.condition_channels:
        lines[0] += f"; conditions of {dataset.condition_channels} channels"
    if held_out is not None:
        lines[0] += f"; {len(held_out)} held out"
    lines += [f"  {line}" for line in dataset.remarks()]
    lines += [f"  held out: {line}" for line in (held_out.remarks() if held_out is not None else [])]
    if dataset.class_names is not None:
        numbers = Counter(dataset.labels)
        classes = [f"{name} ({numbers[k]})" for k, name in enumerate(dataset.class_names)]
        more = [f"and {len(classes) - SHOWN_CLASSES} more"] * (len(classes) > SHOWN_CLASSES)
        lines.append(f"{len(classes)} classes: {', '.join(classes[:SHOWN_CLASSES] + more)}")
    return lines


def describe_unet(unet: UNet2DModel) -> str:
    """Its size, and where it has attention."""
    height = unet.config.sample_size if isinstance(unet.config.sample_size, int) else unet.config.sample_size[0]
    heights = [height // 2**level for level, kind in enumerate(unet.config.down_block_types) if "Attn" in kind]
    attention = f"attention at height {', '.join(map(str, heights))}" if heights else "no attention but in the middle"
    return f"{sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M parameters, {attention}"


def _bytes(dataset: ImageDataset) -> int:
    return sum(picture.nbytes for pictures in dataset.images or [] for picture in pictures)


class StepClock:
    """
    Says, once, what `TIMED_STEPS` steps took and what that makes of the rest. The first step is not counted, in which a
    network may be compiled.

    Args:
        steps_left: Number of steps to come.
    """

    def __init__(self, steps_left: int):
        self.steps_left, self.steps, self.start = steps_left, 0, 0.0

    def tick(self) -> str | None:
        """To be called after each step. Returns the line when it is due."""
        self.steps += 1
        if self.steps not in (1, 1 + TIMED_STEPS):
            return None
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        if self.steps == 1:
            self.start = time.perf_counter()
            return None
        seconds = time.perf_counter() - self.start
        left = self.steps_left - self.steps
        rest = time.strftime("%H:%M:%S", time.gmtime(seconds / TIMED_STEPS * left % 86400))
        days = int(seconds / TIMED_STEPS * left // 86400)
        return f"{TIMED_STEPS} steps took {seconds:.2f} s: {f'{days} days and ' * (days > 0)}{rest} for the {left} left"
