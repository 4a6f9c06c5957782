# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Which of accelerate's kinds of processes and devices can train here."""

from accelerate import Accelerator, DistributedType


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
