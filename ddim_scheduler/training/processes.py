# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Which of accelerate's kinds of processes and devices can train here, and in which precision."""

import argparse
import logging
import os

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.logging import get_logger
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration

logger = get_logger(__name__, log_level="INFO")

NAMES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """
    The processes and devices of `accelerate launch`, and its trackers, and the log of the main one.

    Args:
        args: The options. `mixed_precision` becomes the precision that is chosen.

    Raises:
        ValueError: As of `check_accelerator`.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    cpu = not torch.accelerator.is_available()  # several processes on CPUs find each other only if told
    asked_of_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" as well where nothing was asked
    asked = args.mixed_precision or (None if asked_of_launcher == "no" else asked_of_launcher)
    args.mixed_precision, reason = choose_precision(asked, PartialState(cpu=cpu).device)
    accelerator = Accelerator(
        cpu=cpu,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.logger == "none" else args.logger,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=os.path.join(args.output_dir, "logs")),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.ERROR)  # what all processes find is said once
    check_accelerator(accelerator, args.logger)
    logger.info(f"Precision: {reason}.")
    return accelerator


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
        package = '"ddim-scheduler[train]"' if logger == "tensorboard" else logger.replace("_", "-")
        raise ValueError(f"`logger` is {logger!r}, but accelerate finds no such package: pip install {package}")
