# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Training as a library: what `train_unconditional.py`, which is the training command, is put together from."""

from .batches import (
    TrainingBatch,
    count_batches,
    loss_weights,
    make_dataloader,
    mixed,
    seeded_batches,
    training_batch,
    with_condition,
)
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
from .learning_rate import follow_schedule, warmup_steps
from .losses import append_to_loss_log, check_loss, check_weights, mean_losses, trim_loss_log, validation_losses
from .model import attention_heights, build_unet, check_levels, unet_from_config
from .options import parse_args, resume_command
from .output_folder import check_output_dir, open_output_dir, record_changes, write_pipeline, write_whole
from .pretrained import pretrained_unet
from .previews import conditions_of, distances_to, sample_images, save_preview, trained_pipeline
from .processes import check_accelerator, choose_precision, start_accelerator
from .progress import Progress
from .signals import StopVote, ignore_signals, noted_signals
from .summary import StepClock, describe_images, describe_unet
from .trackers import end_training, log_preview, log_values, start_trackers

__all__ = [
    "FoundImages",
    "ImageDataset",
    "Progress",
    "StepClock",
    "StopVote",
    "TrainingBatch",
    "append_to_loss_log",
    "attention_heights",
    "build_unet",
    "check_accelerator",
    "check_levels",
    "check_loss",
    "check_output_dir",
    "check_resumed_settings",
    "check_weights",
    "choose_precision",
    "conditions_of",
    "count_batches",
    "create_hub_repo",
    "describe_images",
    "describe_unet",
    "distances_to",
    "end_training",
    "find_checkpoint",
    "find_dataset_images",
    "find_folder_images",
    "follow_schedule",
    "ignore_signals",
    "is_whole",
    "list_checkpoints",
    "load_checkpoint",
    "log_preview",
    "log_values",
    "loss_weights",
    "make_dataloader",
    "mean_losses",
    "mixed",
    "noted_signals",
    "open_output_dir",
    "parse_args",
    "pretrained_unet",
    "record_changes",
    "resume_command",
    "sample_images",
    "save_checkpoint",
    "save_preview",
    "seeded_batches",
    "start_accelerator",
    "start_trackers",
    "step_of",
    "trained_pipeline",
    "training_batch",
    "trim_loss_log",
    "unet_from_config",
    "validation_losses",
    "warmup_steps",
    "with_condition",
    "write_pipeline",
    "write_whole",
]
