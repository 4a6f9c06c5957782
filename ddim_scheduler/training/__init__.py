# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Training as a library: what `train_unconditional.py`, which is the training command, is put together from."""

from .batches import TrainingBatch, loss_weights, mixed, seeded_batches, training_batch
from .checkpoints import (
    check_resumed_settings,
    find_checkpoint,
    is_whole,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    step_of,
)
from .hub import create_hub_repo
from .images import FoundImages, ImageDataset, find_dataset_images, find_folder_images
from .losses import append_to_loss_log, mean_losses, trim_loss_log, validation_losses
from .model import build_unet, unet_from_config
from .options import parse_args, resume_command
from .output_folder import check_output_dir, open_output_dir, write_whole
from .previews import distances_to, sample_images, save_preview, trained_pipeline
from .processes import check_accelerator, choose_precision
from .signals import StopVote, ignore_signals, noted_signals
from .summary import StepClock, describe_images

__all__ = [
    "FoundImages",
    "ImageDataset",
    "StepClock",
    "StopVote",
    "TrainingBatch",
    "append_to_loss_log",
    "build_unet",
    "check_accelerator",
    "check_output_dir",
    "check_resumed_settings",
    "choose_precision",
    "create_hub_repo",
    "describe_images",
    "distances_to",
    "find_checkpoint",
    "find_dataset_images",
    "find_folder_images",
    "ignore_signals",
    "is_whole",
    "list_checkpoints",
    "load_checkpoint",
    "loss_weights",
    "mean_losses",
    "mixed",
    "noted_signals",
    "open_output_dir",
    "parse_args",
    "resume_command",
    "sample_images",
    "save_checkpoint",
    "save_preview",
    "seeded_batches",
    "step_of",
    "trained_pipeline",
    "training_batch",
    "trim_loss_log",
    "unet_from_config",
    "validation_losses",
    "write_whole",
]
