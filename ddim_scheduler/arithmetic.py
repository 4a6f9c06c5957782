# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on samples: a factor is a float, or a tensor that broadcasts over them; either gives the same bits."""

from typing import Any

import torch

try:
    from torch._C import _are_functorch_transforms_active as is_transformed
except ImportError:  # no public interface; without it nothing is computed in place that `torch.vmap` may refuse

    def is_transformed() -> bool:
        return True


def times(x: torch.Tensor, a: Any) -> torch.Tensor:
    return x * (a.to(x.dtype) if isinstance(a, torch.Tensor) else a)


def times_(x: torch.Tensor, a: Any) -> torch.Tensor:
    """`times` in place."""
    return x.mul_(a.to(x.dtype) if isinstance(a, torch.Tensor) else a)


def add(x: torch.Tensor, a: Any, y: torch.Tensor, sign: int = 1) -> torch.Tensor:
    """x + a y, or x - a y, rounded once."""
    if isinstance(a, torch.Tensor):
        return torch.addcmul(x, y, a.to(x.dtype), value=sign)
    return torch.add(x, y, alpha=sign * a)


def add_(x: torch.Tensor, a: Any, y: torch.Tensor) -> torch.Tensor:
    """`add` in place of x, where that is allowed: `torch.vmap` may have more of y than of x."""
    if is_transformed():
        return add(x, a, y)
    return x.addcmul_(y, a.to(x.dtype)) if isinstance(a, torch.Tensor) else x.add_(y, alpha=a)


def sum_of_products(a: Any, b: Any, c: Any, d: Any) -> Any:
    """a b + c d, without the work of a d that is 0 or 1."""
    if isinstance(d, float) and d in (0.0, 1.0):
        return a * b + c if d else a * b
    return a * b + c * d


def clamp_(x: torch.Tensor, bound: float) -> torch.Tensor:
    """x clamped to [-bound, bound], in place but under `torch.vmap`, which has no rule for that."""
    return x.clamp(-bound, bound) if is_transformed() else x.clamp_(-bound, bound)


def computing_dtype(sample: torch.Tensor) -> torch.dtype:
    return torch.float64 if sample.dtype == torch.float64 else torch.float32


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)  # a call of `to` costs as much as an operator


def to_device(tensor: torch.Tensor, device: str | torch.device | None) -> torch.Tensor:
    """Moves a tensor without making the host wait. MPS has no float64."""
    if device is None:
        return tensor
    device = torch.device(device)
    if device.type == "mps" and tensor.is_floating_point():
        tensor = tensor.float()
    return tensor.to(device, non_blocking=device.type == "cuda")


def is_on_host(timestep: float | torch.Tensor) -> bool:
    """Whether the value of a timestep can be read at once, outside a compiled graph."""
    if not isinstance(timestep, torch.Tensor):
        return not torch.compiler.is_compiling()
    return is_readable(timestep) and timestep.numel() == 1


def is_readable(tensor: torch.Tensor) -> bool:
    """Whether reading the values makes nobody wait, and is possible: not when compiled, nor under `torch.vmap`."""
    return tensor.is_cpu and not torch.compiler.is_compiling() and not is_transformed()
