# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Which of accelerate's kinds of processes and devices can train here, and in which precision."""

import torch
from accelerate import Accelerator, DistributedType
from accelerate.logging import get_logger

logger = get_logger(__name__, log_level="INFO")

NAMES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}


def choose_precision(mixed_precision: str | None, device: torch.device) -> tuple[str, str]:
    """
    The precision to train in: the one that is asked for, or else bfloat16 where the device has instructions for it.

    Args:
        mixed_precision: "no", "fp16" or "bf16"; None if nothing is asked for.
        device: Where the training is.

    Returns:
        "no", "fp16" or "bf16", and its name with the reason, for the log.
    """
    kind = "processor" if device.type == "cpu" else "GPU"
    has_bfloat16 = computes_bfloat16(device)
    if mixed_precision == "bf16" and not has_bfloat16:
        logger.warning(
            f"`mixed_precision` is 'bf16', but this {kind} is not known to have bfloat16 instructions: emulated, it "
            "can be many times slower than float32, which is --mixed_precision no."
        )
    if mixed_precision is not None:
        return mixed_precision, f"{NAMES.get(mixed_precision, mixed_precision)}, as asked for"
    if has_bfloat16:
        return "bf16", f"bfloat16, for which this {kind} has instructions"
    return "no", f"float32, as this {kind} is not known to have instructions for bfloat16"


def computes_bfloat16(device: torch.device) -> bool:
    """
    Whether a device has instructions for bfloat16 by which torch is faster than in float32. False where that is not
    known: for processors other than x86, and for Apple's GPUs.
    """
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu" and torch.xpu.is_bf16_supported(including_emulation=False)


def check_accelerator(accelerator: Accelerator, logger: str):
    """
    Refuses what accelerate would not do, or do differently without a word.

    Args:
        accelerator: The one that trains.
        logger: Name of the tracker that was asked for, or "none".

    Raises:
        ValueError: For FSDP and DeepSpeed, "fp16" without a GPU, and a tracker whose package is missing.
    """
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"`distributed_type` {accelerator.distributed_type.value} is not supported: EMA, previews and checkpoints "
            "need the whole model and optimizer in each process. Use MULTI_GPU (DDP)."
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would use float32
        raise ValueError("`mixed_precision` 'fp16' needs a GPU; use 'bf16' or 'no' on a CPU.")
    if logger != "none" and not accelerator.log_with:  # accelerate would go on without
        hint = ': pip install "ddim-scheduler[train]"' if logger == "tensorboard" else "."
        raise ValueError(f"`logger` is {logger!r}, but accelerate finds no such package{hint}")
