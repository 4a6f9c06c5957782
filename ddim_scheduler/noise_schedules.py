# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Noise schedules in float64: betas, and log alpha-bar, whose sums of log1p keep every digit of the small betas."""

from typing import Any

import numpy as np
import torch

from .validation import check_choice

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace")


def named_betas(beta_schedule: str, num_train_timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
    """The T betas of a named schedule, the same curves as in diffusers."""
    if beta_schedule == "linear":
        return np.linspace(beta_start, beta_end, num_train_timesteps)
    if beta_schedule == "scaled_linear":
        return np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
    if beta_schedule == "sigmoid":
        return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, num_train_timesteps)))

    # the others are 1 - alpha_bar(u + 1/T) / alpha_bar(u), at most 0.999
    check_choice("beta_schedule", beta_schedule, BETA_SCHEDULES)
    u = np.arange(num_train_timesteps + 1) / num_train_timesteps
    if beta_schedule == "squaredcos_cap_v2":
        angle = (u + 0.008) / 1.008 * np.pi / 2
        low, high = angle[:-1], angle[1:]
        # cos^2(low) - cos^2(high) as a product, which keeps the digits of the first, small betas
        betas = np.sin(high - low) * np.sin(high + low) / np.cos(low) ** 2
    elif beta_schedule == "exp":
        betas = -np.expm1(-12.0 * np.diff(u))
    else:  # laplace
        log_snr = -0.5 * np.copysign(1, 0.5 - u) * np.log(1 - 2 * np.abs(0.5 - u) + 1e-6)
        betas = -np.expm1(np.diff(-0.5 * np.log1p(np.exp(-log_snr))))
    return np.minimum(betas, 0.999)


def as_betas(name: str, betas: Any) -> np.ndarray:
    """A list, array or tensor of betas as float64: in [0, 1), the first one above 0, only the last one may be 1."""
    try:
        array = torch.as_tensor(betas, dtype=torch.float64).cpu().numpy().copy()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`{name}` must be a list of numbers, but is {betas!r}.") from None
    if array.ndim != 1 or not array.size:
        raise ValueError(f"`{name}` must be a list of at least one number, but its shape is {array.shape}.")
    valid = (array >= 0) & (array < 1)
    valid[0] &= array[0] > 0
    valid[-1] |= array[-1] == 1 and len(array) > 1
    if not valid.all():
        bad = int(np.argmin(valid))
        raise ValueError(
            f"`{name}` must be in [0, 1), the first one above 0 and only the last one 1, but number {bad} is "
            f"{array[bad]}."
        )
    return array


def log_of_alphas_cumprod(alphas_cumprod: torch.Tensor) -> np.ndarray:
    """log alpha-bar of values that somebody wrote: in (0, 1), never rising, of which only the last may be 0."""
    array = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach().cpu().numpy()
    if array.ndim != 1 or not array.size:
        raise ValueError(f"`alphas_cumprod` must be a list of at least one number, but its shape is {array.shape}.")
    valid = (array > 0) & (array < 1) & (np.diff(array, prepend=1.0) <= 0)
    valid[-1] |= array[-1] == 0 and len(array) > 1
    if not valid.all():
        bad = int(np.argmin(valid))
        raise ValueError(
            f"`alphas_cumprod` must be in (0, 1) and never rise, and only the last may be 0, but number {bad} is "
            f"{array[bad]}."
        )
    with np.errstate(divide="ignore"):
        return np.log(array)


def log_alphas_cumprod_of(betas: np.ndarray) -> np.ndarray:
    """log alpha-bar, the running sum of log(1 - beta); minus infinity where a beta is 1 (zero terminal SNR)."""
    with np.errstate(divide="ignore"):
        return np.log1p(-betas).cumsum()


def betas_of(log_alphas_cumprod: np.ndarray) -> np.ndarray:
    """The betas behind log alpha-bar."""
    return -np.expm1(np.diff(log_alphas_cumprod, prepend=0.0))


def shift_snr(log_alphas_cumprod: np.ndarray, scale: float) -> np.ndarray:
    """Divides the signal-to-noise ratio of every timestep by `scale` (CogVideoX, https://arxiv.org/abs/2408.06072)."""
    return log_alphas_cumprod - np.log1p((1 - scale) * np.expm1(log_alphas_cumprod))


def rescale_zero_terminal_snr(log_alphas_cumprod: np.ndarray) -> np.ndarray:
    """
    Algorithm 1 of https://arxiv.org/abs/2305.08891 on log alpha-bar: shifts and scales alpha_t = sqrt(alpha-bar_t) so
    that the first stays and the last becomes 0. Each end uses the form that keeps its digits there.
    """
    if np.isneginf(log_alphas_cumprod[-1]):
        return log_alphas_cumprod
    if len(log_alphas_cumprod) < 2:
        raise ValueError("`rescale_betas_zero_snr` needs `num_train_timesteps` of at least 2, but it is 1.")
    from_first = (log_alphas_cumprod - log_alphas_cumprod[0]) / 2
    from_last = (log_alphas_cumprod - log_alphas_cumprod[-1]) / 2
    ratio = np.expm1(from_last) / np.expm1(from_last[0])
    with np.errstate(divide="ignore"):  # the last one is log 0
        near_first = np.log1p(np.expm1(from_first) / -np.expm1(from_first[-1]))
        return log_alphas_cumprod[0] + 2 * np.where(ratio > 0.5, near_first, np.log(ratio))
