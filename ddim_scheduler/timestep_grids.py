# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Grids of timesteps: N of the T that a model was trained on, and what each one is followed by."""

import math
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging

from .validation import check_choice

logger = logging.get_logger(__name__)

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace", "quadratic", "angle")  # those that need no fitting


def spaced_timesteps(spacing: str, num_train_timesteps: int, num_inference_steps: int, steps_offset: int) -> np.ndarray:
    """N timesteps in 0..T-1, strictly decreasing; diffusers' own wherever those are N and in range."""
    T, N = num_train_timesteps, num_inference_steps
    check_choice("timestep_spacing", spacing, TIMESTEP_SPACINGS[:-1])
    i = np.arange(N)
    if spacing == "leading":
        ascending = i * (T // N)
        room = T - 1 - int(ascending[-1])
        if steps_offset > room:
            logger.warning(
                f"`steps_offset` {steps_offset} is lowered to {room}: {N} of {T} timesteps leave no more room."
            )
        ascending += min(steps_offset, room)
    elif spacing == "trailing":
        # of `arange`'s entries only the first N are in range; rounding may give it one more
        ascending = np.arange(T, 0, -T / N)[N - 1 :: -1].round().astype(np.int64) - 1
    elif spacing == "linspace":
        ascending = np.linspace(0, T - 1, N).round().astype(np.int64)
    else:
        # the official code's `quad`; where its first entries coincide (large N), the nearest distinct ones above
        ascending = np.maximum((np.linspace(0, math.sqrt(0.8 * T), N) ** 2).astype(np.int64), i)
    if spacing != "quadratic" and ascending[-1] + 1 < 0.9 * T:
        logger.warning(
            f"`timestep_spacing` {spacing!r} with {N} steps starts at timestep {ascending[-1]} of {T}, but samples "
            "start as pure noise; 'trailing' starts at the last timestep."
        )
    return ascending[::-1]


def angle_timesteps(angles: np.ndarray, num_inference_steps: int) -> np.ndarray:
    """
    N timesteps, strictly decreasing, which are even in the `angles` arctan(sigma / alpha) of 0..T-1, from the largest
    to that of x_0. Where that repeats timesteps, the i-th smallest is at least i.
    """
    N = num_inference_steps
    wanted = angles[-1] * np.arange(N, 0, -1) / N
    above = np.searchsorted(angles, wanted).clip(1, len(angles) - 1)
    grid = above - (wanted - angles[above - 1] < angles[above] - wanted)  # the nearest
    from_last = np.arange(N)[::-1]
    grid = np.minimum.accumulate(grid + np.arange(N)) - np.arange(N)  # each at least one below the one before it
    return np.maximum(grid, from_last)


def as_timesteps(timesteps: Any, num_train_timesteps: int) -> np.ndarray:
    """A list, array or tensor of timesteps as int64: integers in 0..T-1, at least one, in any order."""
    if isinstance(timesteps, torch.Tensor):
        timesteps = timesteps.cpu()
    try:
        grid = np.asarray(timesteps)
    except ValueError:  # lists of several lengths
        raise TypeError(f"`timesteps` must be a list of at least one integer, but is {timesteps!r}.") from None
    if grid.ndim != 1 or grid.size == 0 or not np.issubdtype(grid.dtype, np.integer):
        raise TypeError(f"`timesteps` must be a list of at least one integer, but is {timesteps!r}.")
    if grid.max() >= num_train_timesteps or grid.min() < 0:
        raise ValueError(f"`timesteps` must be in 0..{num_train_timesteps - 1}, but are {grid.tolist()}.")
    return grid.astype(np.int64)


def check_decreasing(grid: np.ndarray):
    if (np.diff(grid) >= 0).any():
        raise ValueError(f"`timesteps` must be strictly decreasing, but are {grid.tolist()}.")


def previous_timesteps(grid: np.ndarray, num_train_timesteps: int) -> np.ndarray:
    """Where a step from each of 0..T-1 goes to: the next lower timestep of the grid, -1 below its lowest."""
    bounds = np.empty(len(grid) + 2, np.int64)
    bounds[0], bounds[1:-1], bounds[-1] = -1, grid, num_train_timesteps - 1
    bounds[1:-1].sort()
    return bounds[:-1].repeat(bounds[1:] - bounds[:-1])
