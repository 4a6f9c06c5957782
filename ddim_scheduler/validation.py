# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that several files share: each names the argument and its value. They return plain numbers."""

import math
from typing import Any

import numpy as np
import torch

from .arithmetic import is_readable, to_device

BOOLS, INTEGERS = (bool, np.bool_), (int, np.integer)
NUMBERS = (int, float, np.integer, np.floating)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, but is {value!r}.")
    return value


def check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, BOOLS):
        raise TypeError(f"`{name}` must be True or False, but is {value!r}.")
    return bool(value)


def check_integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, INTEGERS):
        raise TypeError(f"`{name}` must be an integer, but is {value!r}.")
    if (low is not None and value < low) or (high is not None and value > high):
        interval = f"at least {low}" if high is None else f"in {low}..{high}"
        raise ValueError(f"`{name}` must be {interval}, but is {value!r}.")
    return int(value)


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, open_interval: bool = False
) -> int | float:
    """A finite number in `[low, high]`, or in `(low, high)`."""
    if isinstance(value, bool) or not isinstance(value, NUMBERS):
        raise TypeError(f"`{name}` must be a number, but is {value!r}.")
    inside = low < value < high if open_interval else low <= value <= high
    if not inside or abs(value) == math.inf:
        interval = f"({low}, {high})" if open_interval else f"[{low}, {high}]"
        raise ValueError(f"`{name}` must be finite and in {interval}, but is {value!r}.")
    return value.item() if isinstance(value, np.generic) else value


def check_floating(name: str, tensor: Any):
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, torch.Tensor) else repr(tensor)
        raise TypeError(f"`{name}` must be a floating point tensor, but is {kind}.")


def check_same_shape(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor):
    if tensor.shape != other.shape:
        raise ValueError(
            f"`{name}` must have the {other_name}'s shape {tuple(other.shape)}, but has {tuple(tensor.shape)}."
        )


def check_noise(noise: torch.Tensor, num_timesteps: int, name: str, sample: torch.Tensor):
    """Refuses noise and timesteps that do not broadcast with a sample, of the argument `name`."""
    check_floating(name, sample)
    check_floating("noise", noise)
    try:
        if noise.shape != sample.shape or (num_timesteps,) not in ((1,), sample.shape[:1]):
            torch.broadcast_shapes(sample.shape, noise.shape, (num_timesteps, *(1,) * (sample.ndim - 1)))
    except RuntimeError:
        raise ValueError(
            f"`noise` of shape {tuple(noise.shape)} and {num_timesteps} `timesteps` do not go with `{name}` of shape "
            f"{tuple(sample.shape)}."
        ) from None


def check_generator(generator: Any, batch_size: int | None = None):
    """None, a `torch.Generator`, or a list of one for each sample; of any number where no `batch_size` is given."""
    if generator is None:
        return
    generators = generator if isinstance(generator, list) else [generator]
    if not all(isinstance(g, torch.Generator) for g in generators):
        raise TypeError(f"`generator` must be a torch.Generator or a list of them, but is {generator!r}.")
    if isinstance(generator, list) and batch_size is not None and len(generator) != batch_size:
        raise ValueError(f"`generator` must hold one for each of the {batch_size} samples, but holds {len(generator)}.")


def check_eta(eta: torch.Tensor, sample: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One or B values of eta, shaped for the sample. Their range is checked where that makes nobody wait."""
    batch_size = sample.shape[:1].numel()
    if eta.is_complex() or eta.numel() not in (1, batch_size):
        raise ValueError(f"`eta` must hold one value or one for each of the {batch_size} samples, but is {eta!r}.")
    if is_readable(eta):
        values = eta.detach().double().flatten().numpy()
        outside = ~((values >= 0) & (values <= 1))
        if outside.any():
            raise ValueError(f"`eta` must be in [0, 1], but holds {values[outside].tolist()}.")
    return to_device(eta, sample.device).to(dtype).view(-1, *(1,) * (sample.ndim - 1))
