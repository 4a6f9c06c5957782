# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains a `UNet2DModel` on images, as a DDPM, and saves a pipeline that samples it by DDIM.

    accelerate launch examples/train_unconditional.py --train_data_dir photos --output_dir outputs/photos

`image_dataset.py` beside this file reads the images. The output folder holds the pipeline
(`EtaDDIMPipeline.from_pretrained` loads it), `samples/` with preview grids, `checkpoint-N/` to resume from, and `logs/`
with the losses, as JSON lines and for TensorBoard.

All randomness of a step comes from the seed and the number of the step, never from what ran before, so that a resumed
run continues on the same images and the same noise as one that was not interrupted. It is drawn for the images of all
processes together, so that their number changes nothing either.
"""

import argparse
import contextlib
import fcntl
import json
import logging
import math
import os
import re
import shlex
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedType, skip_first_batches
from accelerate.logging import get_logger
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffusers import UNet2DModel
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from diffusers.utils import make_image_grid
from huggingface_hub import create_repo, model_info
from tqdm.auto import tqdm

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, image_generators
from ddim_scheduler.scheduling_ddim import BETA_SCHEDULES, PREDICTION_TYPES, TIMESTEP_SPACINGS

from image_dataset import ImageDataset, find_images

logger = get_logger(__name__, log_level="INFO")

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
CHECKSUMS = "checksums.json"
LOSS_LOG = "logs/losses.jsonl"
LOCK = ".lock"
TIMESTEP_BUCKETS = 4  # the log has the loss of each quarter of the timesteps
# what a checkpoint depends on, and a resumed run must therefore not change
FIXED_ARGUMENTS = (
    *("resolution", "channels", "class_conditional", "model_config_name_or_path", "block_out_channels"),
    *("layers_per_block", "attention_resolutions", "prediction_type", "ddpm_num_steps", "ddpm_beta_schedule"),
    *("rescale_betas_zero_snr", "use_ema", "ema_inv_gamma", "ema_power", "ema_max_decay", "learning_rate"),
    *("adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "seed"),
)
OTHER_OUTPUTS = (
    *("unet", "scheduler", "model_index.json", "pipeline.py", "sample.png", "samples", "logs", "training_args.json"),
)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default value where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a UNet2DModel on images.", formatter_class=HelpFormatter)
    group = parser.add_argument_group("data (one of the first two is needed)")
    group.add_argument("--train_data_dir", help="folder of images or .npy arrays, searched with its sub-folders")
    group.add_argument("--dataset_name", help="data set of the Hub, or what `datasets.load_dataset` takes")
    group.add_argument("--dataset_config_name", help="configuration of the data set")
    group.add_argument("--image_column", default="image", help="column of the data set that holds the images")
    group.add_argument("--label_column", default="label", help="column of the data set that holds the classes")
    group.add_argument("--cache_dir", help="where `datasets` keeps its files")
    group.add_argument("--resolution", type=int, nargs="+", default=[64], help="size: one number, or height width")
    group.add_argument("--channels", type=int, help="1: gray, 3: colour, 4: with alpha (default: those of the data)")
    group.add_argument("--center_crop", action="store_true", help="crop images of another aspect ratio at their centre")
    group.add_argument("--random_flip", action="store_true", help="mirror images at random")
    group.add_argument("--image_cache_gb", type=float, help="memory for decoded images (default: half of what is free)")
    group.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that load images, for each GPU")

    group = parser.add_argument_group("model")
    group.add_argument("--model_config_name_or_path", help="config of a UNet2DModel, instead of the three below")
    group.add_argument("--block_out_channels", type=int, nargs="+", default=[128, 256, 256, 256], help="level widths")
    group.add_argument("--layers_per_block", type=int, default=2, help="residual blocks per level")
    group.add_argument("--attention_resolutions", type=int, nargs="*", default=[16], help="map heights with attention")
    group.add_argument(
        "--class_conditional", action="store_true", help="learn the classes: sub-folders, or label column"
    )
    group.add_argument("--label_dropout", type=float, default=0.1, help="share of labels made `no class`, for guidance")

    group = parser.add_argument_group("diffusion")
    group.add_argument("--prediction_type", default="epsilon", choices=PREDICTION_TYPES, help="what the model predicts")
    group.add_argument("--ddpm_num_steps", type=int, default=1000, help="number of noise levels T")
    group.add_argument("--ddpm_beta_schedule", default="linear", choices=BETA_SCHEDULES, help="noise schedule")
    group.add_argument(
        "--rescale_betas_zero_snr", action="store_true", help="no signal at the last t; not with epsilon"
    )
    group.add_argument("--snr_gamma", type=float, help="min-SNR weights, 5 in the paper (default: no weights)")
    group.add_argument("--noise_offset", type=float, default=0.0, help="std of the noise that an image has as a whole")
    group.add_argument("--timestep_spacing", default="leading", choices=TIMESTEP_SPACINGS, help="sampling grid")
    group.add_argument(
        "--clip_sample",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="sampling clips the predicted image; the paper's does not",
    )

    group = parser.add_argument_group("optimisation")
    group.add_argument("--train_batch_size", type=int, default=16, help="images per process and forward pass")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="forward passes per optimizer step")
    group.add_argument("--num_epochs", type=int, default=100, help="passes over the data")
    group.add_argument("--max_train_steps", type=int, help="optimizer steps; replaces --num_epochs")
    group.add_argument("--learning_rate", type=float, default=1e-4, help="peak learning rate of AdamW")
    group.add_argument(
        "--lr_scheduler",
        default="cosine",
        choices=sorted(s.value for s in SchedulerType if s is not SchedulerType.PIECEWISE_CONSTANT),
        help="learning rate schedule",
    )
    group.add_argument("--lr_warmup_steps", type=int, default=500, help="optimizer steps of warm-up")
    group.add_argument("--adam_beta1", type=float, default=0.95, help="AdamW's first beta")
    group.add_argument("--adam_beta2", type=float, default=0.999, help="AdamW's second beta")
    group.add_argument("--adam_weight_decay", type=float, default=1e-6, help="AdamW's weight decay")
    group.add_argument("--adam_epsilon", type=float, default=1e-8, help="AdamW's epsilon")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are scaled down to this norm")
    group.add_argument("--use_ema", action="store_true", help="save and preview the moving average of the weights")
    group.add_argument("--ema_inv_gamma", type=float, default=1.0, help="inverse gamma of the EMA warm-up")
    group.add_argument("--ema_power", type=float, default=0.75, help="power of the EMA warm-up")
    group.add_argument("--ema_max_decay", type=float, default=0.9999, help="largest decay of the EMA")
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: accelerate's configuration")
    group.add_argument("--gradient_checkpointing", action="store_true", help="less memory, about a third more time")
    group.add_argument("--channels_last", action="store_true", help="memory layout that is faster on GPUs")
    group.add_argument("--seed", type=int, default=0, help="seed of weights, data order, noise and previews")

    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", default="outputs/ddim-model", help="folder for all that the run writes")
    group.add_argument("--overwrite_output_dir", action="store_true", help="delete what a former run wrote there first")
    group.add_argument("--save_images_steps", type=int, default=1000, help="optimizer steps between previews")
    group.add_argument(
        "--eval_batch_size", type=int, default=64, help="images of a preview, made at once by all processes"
    )
    group.add_argument("--ddpm_num_inference_steps", type=int, default=50, help="DDIM steps of a preview")
    group.add_argument("--checkpointing_steps", type=int, default=1000, help="optimizer steps between checkpoints")
    group.add_argument("--checkpoints_total_limit", type=int, help="checkpoints to keep; the oldest are deleted")
    group.add_argument("--resume_from_checkpoint", help="a checkpoint, or 'latest': the newest whole one of the output")
    group.add_argument("--logging_steps", type=int, default=50, help="optimizer steps between lines of the log")
    group.add_argument(
        "--logger", default="tensorboard", choices=(*sorted(LOGGER_TYPE_TO_CLASS), "none"), help="tracker of accelerate"
    )

    group = parser.add_argument_group("evaluation (as by evaluate.py, against the training images)")
    group.add_argument("--eval_every", type=int, help="optimizer steps between evaluations; the last is at the end")
    group.add_argument("--eval_num_images", type=int, default=2500, help="images to generate, more than features")
    networks = ("inception", "efficientnet", "digits")
    group.add_argument("--eval_features", default="inception", choices=networks, help="2048, 1280 or 32 features")
    group.add_argument("--eval_weights", help="file of the feature network's weights; 'digits' needs it")

    group = parser.add_argument_group("Hub")
    group.add_argument("--push_to_hub", action="store_true", help="upload the result, with a model card")
    group.add_argument("--hub_model_id", help="repository; yours of the output folder's name by default")
    group.add_argument("--hub_private_repo", action="store_true", help="make a private repository, refuse a public one")
    group.add_argument("--hub_token", help="token to use instead of the stored one; it is written nowhere")
    args = parser.parse_args(argv)

    if (args.train_data_dir is None) == (args.dataset_name is None):
        parser.error("give either --train_data_dir or --dataset_name")
    if args.train_data_dir is not None and not os.path.isdir(args.train_data_dir):
        parser.error(f"--train_data_dir is no folder: {args.train_data_dir}")
    shares = ("adam_beta1", "adam_beta2", "ema_max_decay", "label_dropout")
    may_be_zero = (
        *("seed", "lr_warmup_steps", "adam_weight_decay", "noise_offset", "image_cache_gb", "dataloader_num_workers"),
    )
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if type(number) not in (int, float):
                continue
            if name in shares and not 0 <= number < 1:
                parser.error(f"--{name} must be in [0, 1), but is {number}")
            if name in may_be_zero and not 0 <= number < math.inf:
                parser.error(f"--{name} must not be negative, but is {number}")
            if name not in (*shares, *may_be_zero) and not 0 < number < math.inf:
                parser.error(f"--{name} must be positive, but is {number}")
    if len(args.resolution) > 2:
        parser.error(f"--resolution must be one or two numbers, but is {args.resolution}")
    if args.ddpm_num_inference_steps > args.ddpm_num_steps:
        parser.error(
            f"--ddpm_num_inference_steps must not exceed --ddpm_num_steps, but is {args.ddpm_num_inference_steps}"
        )
    if args.rescale_betas_zero_snr and args.prediction_type == "epsilon":
        parser.error("--rescale_betas_zero_snr leaves no signal to find with --prediction_type epsilon: use another")
    if args.overwrite_output_dir and args.resume_from_checkpoint:
        parser.error("--overwrite_output_dir would delete what --resume_from_checkpoint needs")
    if args.eval_weights is not None and not os.path.isfile(args.eval_weights):
        parser.error(f"--eval_weights is no file: {args.eval_weights}")
    if args.eval_every is None and args.eval_weights is not None:
        parser.error("--eval_weights needs --eval_every")
    if not args.push_to_hub and (args.hub_model_id or args.hub_private_repo or args.hub_token):
        parser.error("--hub_model_id, --hub_private_repo and --hub_token need --push_to_hub")
    args.resolution = [args.resolution[0], args.resolution[-1]]
    return args


# --------------------------------------------------------------------------------------------------------------- model


def build_unet(args: argparse.Namespace, channels: int, num_classes: int | None) -> UNet2DModel:
    """The model; with classes it has one embedding more than there are, whose number, the last, means no class."""
    height, width = args.resolution
    sample_size = height if height == width else (height, width)
    num_class_embeds = None if num_classes is None else num_classes + 1
    if args.model_config_name_or_path is not None:
        config = UNet2DModel.load_config(args.model_config_name_or_path)
        unet = UNet2DModel.from_config({**config, "sample_size": sample_size, "num_class_embeds": num_class_embeds})
        if unet.config.in_channels != channels:
            raise ValueError(f"The UNet takes {unet.config.in_channels} channels, but the images have {channels}.")
        if unet.config.out_channels != channels:
            raise ValueError(
                f"The UNet returns {unet.config.out_channels} channels, but the images have {channels}: learned "
                "variances are not trained."
            )
        return unet
    downsamplings = len(args.block_out_channels) - 1
    if height % 2**downsamplings or width % 2**downsamplings:
        raise ValueError(
            f"`resolution` must be a multiple of {2**downsamplings} for {downsamplings + 1} levels in "
            f"`block_out_channels`, but is {args.resolution}."
        )
    attention = [height // 2**i in args.attention_resolutions for i in range(downsamplings + 1)]
    if any(a and width % 8 for a, width in zip(attention, args.block_out_channels, strict=True)):
        raise ValueError(
            f"`block_out_channels` {args.block_out_channels} must be multiples of 8 where there is attention: "
            f"{args.attention_resolutions}."
        )
    return UNet2DModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(args.block_out_channels),
        layers_per_block=args.layers_per_block,
        norm_num_groups=math.gcd(32, *args.block_out_channels),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        num_class_embeds=num_class_embeds,
    )


def loss_weights(noise_scheduler: EtaDDIMScheduler, snr_gamma: float | None) -> torch.Tensor:
    """
    Weight of the squared error at each timestep, shape (T,). Min-SNR-gamma (https://arxiv.org/abs/2303.09556) is
    min(SNR, gamma) in terms of x_0, written for what the model predicts; at zero SNR 1 for epsilon, 0 for x_0 and v.
    """
    timesteps = torch.arange(len(noise_scheduler))
    if snr_gamma is None:
        return torch.ones(len(timesteps))
    snr = compute_snr(noise_scheduler, timesteps)
    if noise_scheduler.config.prediction_type == "epsilon":
        return (snr_gamma / snr).clamp(max=1)
    if noise_scheduler.config.prediction_type == "v_prediction":
        return snr.clamp(max=snr_gamma) / (snr + 1)
    return snr.clamp(max=snr_gamma)


def mixed(seed: Sequence[int]) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def training_batch(
    images: torch.Tensor,
    noise_scheduler: EtaDDIMScheduler,
    seed: tuple[int, ...],
    accelerator: Accelerator,
    noise_offset: float = 0.0,
    label_dropout: float = 0.0,
):
    """
    Noisy images, timesteps, the model's target and whose label is dropped, for one forward pass; float32. All is drawn
    for the whole batch over all processes and each takes its share, so that it does not depend on their number.
    """
    generator = torch.Generator(images.device).manual_seed(mixed(seed))
    batch, rank = len(images), accelerator.process_index
    mine = slice(rank * batch, (rank + 1) * batch)
    total = batch * accelerator.num_processes
    noise = torch.randn((total, *images.shape[1:]), generator=generator, device=images.device)[mine]
    timesteps = torch.randint(len(noise_scheduler), (total,), generator=generator, device=images.device)[mine]
    is_dropped = torch.rand(total, generator=generator, device=images.device)[mine] < label_dropout
    if noise_offset:
        offsets = torch.randn((total, images.shape[1], 1, 1), generator=generator, device=images.device)[mine]
        noise = noise + noise_offset * offsets

    noisy_images = noise_scheduler.add_noise(images, noise, timesteps)
    target = noise
    if noise_scheduler.config.prediction_type == "sample":
        target = images
    elif noise_scheduler.config.prediction_type == "v_prediction":
        target = noise_scheduler.get_velocity(images, noise, timesteps)
    return noisy_images, timesteps, target, is_dropped


# --------------------------------------------------------------------------------------------------------- checkpoints


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if CHECKPOINT_NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def save_checkpoint(accelerator: Accelerator, args: argparse.Namespace, step: int):
    """Writes a checkpoint under a temporary name and renames it, so that one with a proper name is whole."""
    path = Path(args.output_dir, f"checkpoint-{step}")
    unfinished = path.with_name(f"unfinished-{path.name}")
    try:
        accelerator.save_state(str(unfinished))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (unfinished / CHECKSUMS).write_text(json.dumps(checksums(unfinished), indent=2) + "\n")
            shutil.rmtree(path, ignore_errors=True)
            unfinished.rename(path)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(
            f"The checkpoint {path} cannot be written ({error}). Those before it are as they were."
        ) from error
    if accelerator.is_main_process and args.checkpoints_total_limit is not None:
        older = [other for other in list_checkpoints(args.output_dir) if step_of(other) < step]
        for other in older[: max(0, len(older) + 1 - args.checkpoints_total_limit)]:
            shutil.rmtree(other)


def checksums(folder: Path) -> dict[str, int]:
    """The CRC-32 of each file of a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in files}


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint holds what was written."""
    try:
        return json.loads((checkpoint / CHECKSUMS).read_text()) == checksums(checkpoint)
    except (OSError, ValueError):
        return False


def find_checkpoint(args: argparse.Namespace) -> Path | None:
    """The checkpoint to resume from: None if none is asked for, or 'latest' is and there is none yet."""
    if args.resume_from_checkpoint is None:
        return None
    if args.resume_from_checkpoint == "latest":
        checkpoints = list_checkpoints(args.output_dir)
        for path in reversed(checkpoints):
            if is_whole(path):
                return path
            logger.warning(f"{path} is not whole and is not used.")
        if checkpoints:
            raise ValueError(f"`resume_from_checkpoint` is 'latest', but no checkpoint in {args.output_dir} is whole.")
        logger.warning(f"There is no checkpoint in {args.output_dir} yet: the training starts at step 0.")
        return None
    path = Path(args.resume_from_checkpoint)
    if not (path.is_dir() and CHECKPOINT_NAME.fullmatch(path.name)):
        raise ValueError(f"`resume_from_checkpoint` is no folder named checkpoint-N: {path}")
    if not is_whole(path):
        others = [str(other) for other in list_checkpoints(path.parent) if other != path]
        raise ValueError(f"`resume_from_checkpoint` {path} is not whole. Other checkpoints: {others}")
    for later in list_checkpoints(args.output_dir):
        if step_of(later) > step_of(path) and is_whole(later):
            raise ValueError(
                f"`resume_from_checkpoint` {path}: move {later} away, which would be mixed with the new ones."
            )
    return path


def check_resumed_arguments(
    args: argparse.Namespace, checkpoint: Path, max_train_steps: int, class_names: list[str] | None
):
    """Refuses to continue a run of another model, objective or optimizer, or one that went further."""
    if step_of(checkpoint) > max_train_steps:
        raise ValueError(f"`resume_from_checkpoint` {checkpoint} is after the last step, {max_train_steps}.")
    record = checkpoint.parent / "training_args.json"
    try:
        former = json.loads(record.read_text()) if record.is_file() else {}
    except ValueError as error:
        raise ValueError(f"`resume_from_checkpoint`: {record} cannot be read: {error}") from error
    for name, value in {**{name: getattr(args, name) for name in FIXED_ARGUMENTS}, "class_names": class_names}.items():
        if name in former and former[name] != value:
            raise ValueError(f"`{name}` is {value!r}, but {former[name]!r} in the run of {checkpoint}.")


# -------------------------------------------------------------------------------------------------------------- output


def check_output_dir(args: argparse.Namespace):
    """Refuses a folder that cannot be written to, or that holds what nobody said may go."""
    output_dir = Path(args.output_dir).absolute()
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"`output_dir` is no folder: {output_dir}")
    existing = next(path for path in (output_dir, *output_dir.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=True):
        raise ValueError(f"`output_dir` {output_dir} cannot be written: no permission in {existing}.")
    if args.train_data_dir is not None and output_dir.resolve().is_relative_to(Path(args.train_data_dir).resolve()):
        raise ValueError(
            f"`output_dir` {output_dir} is in `train_data_dir`: its previews would be trained on, if resumed."
        )
    if not output_dir.exists() or not any(output_dir.iterdir()):
        return
    is_of_a_run = (output_dir / LOCK).is_file() or (output_dir / "training_args.json").is_file()
    if args.overwrite_output_dir:
        if not is_of_a_run:
            raise ValueError(f"`output_dir` {output_dir} holds files, but of no training: nothing is deleted there.")
        for name in ("train_data_dir", "model_config_name_or_path", "eval_weights"):
            given = getattr(args, name)
            if given and any(Path(given).resolve().is_relative_to(path.resolve()) for path in outputs(output_dir)):
                raise ValueError(f"`overwrite_output_dir` would delete `{name}`, {given}.")
    elif args.resume_from_checkpoint is None or not (is_of_a_run or list_checkpoints(output_dir)):
        raise ValueError(
            f"`output_dir` is not empty: {output_dir}. See --resume_from_checkpoint, --overwrite_output_dir."
        )


def lock(output_dir: Path):
    """Keeps other runs out of the folder until this process ends, in whatever way."""
    output_dir.mkdir(parents=True, exist_ok=True)
    file = os.open(output_dir / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ValueError(f"`output_dir` {output_dir} is in use by another run.") from None
    except OSError as error:  # a file system without locks
        logger.warning(f"{output_dir} cannot be locked ({error}): start no second run there.")


def outputs(output_dir: Path) -> list[Path]:
    """What a run writes."""
    return [*list_checkpoints(output_dir), *(output_dir / name for name in OTHER_OUTPUTS)]


def delete_outputs(output_dir: Path):
    """Deletes what a former run wrote, and nothing else."""
    for path in outputs(output_dir):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def create_hub_repo(args: argparse.Namespace) -> str:
    """Makes the repository: a wrong token or name is an error before the training and not after it."""
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    try:
        private = True if args.hub_private_repo else None
        repo_id = create_repo(name, private=private, token=args.hub_token, exist_ok=True).repo_id
        is_private = model_info(repo_id, token=args.hub_token).private
    except Exception as error:
        raise ValueError(f"`push_to_hub`: the repository {name} cannot be used: {error}") from error
    if args.hub_private_repo and not is_private:
        raise ValueError(f"`hub_private_repo` is given, but the repository {repo_id} is there already, and is public.")
    return repo_id


def mean_losses(
    accelerator: Accelerator, recent: list[tuple[torch.Tensor, torch.Tensor]], num_train_timesteps: int
) -> dict[str, float]:
    """The mean of the losses of all processes, over all timesteps and for each quarter of them."""
    loss, timesteps = (accelerator.gather(torch.cat(parts)).cpu().numpy() for parts in zip(*recent, strict=True))
    means = {"loss": float(loss.mean(dtype=np.float64))}
    for part in np.array_split(np.arange(num_train_timesteps), TIMESTEP_BUCKETS):
        is_inside = np.isin(timesteps, part)
        if is_inside.any():
            means[f"loss/timesteps_{part[0]}-{part[-1]}"] = float(loss[is_inside].mean(dtype=np.float64))
    return means


def trim_loss_log(path: Path, step: int):
    """Drops the lines after a step, and half a line that a killed run left."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.is_file() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # no whole line of the log
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                kept.append(line)
    write_whole(path, "".join(kept))


def write_whole(path: Path, text: str):
    """Writes a file under another name first, so that a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    try:
        unfinished.write_text(text)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error}") from error
    unfinished.replace(path)


def sample_images(
    accelerator: Accelerator,
    pipeline: EtaDDIMPipeline,
    args: argparse.Namespace,
    num_images: int,
    class_labels: Sequence[int] | None,
) -> torch.Tensor:
    """
    Images, uint8 (N, C, H, W), made by all processes. Image k depends on (seed, k) and its class alone, so that it is
    the same each time and for any number of processes. The class labels are taken by turns.
    """
    images = []
    for start in range(0, num_images, args.eval_batch_size):
        batch_size = min(args.eval_batch_size, num_images - start)
        share = math.ceil(batch_size / accelerator.num_processes)  # if it is rounded up, the last ones are dropped
        indices = range(start + accelerator.process_index * share, start + (accelerator.process_index + 1) * share)
        mine = pipeline(
            batch_size=share,
            num_inference_steps=args.ddpm_num_inference_steps,
            generator=image_generators(args.seed, indices),
            class_labels=None if class_labels is None else [class_labels[k % len(class_labels)] for k in indices],
            output_type="pt",
        ).images
        images.append(accelerator.gather((mine * 255).round().byte())[:batch_size].cpu())
    return torch.cat(images)


def save_preview(accelerator: Accelerator, args: argparse.Namespace, images: torch.Tensor, step: int):
    """Writes images as PNG and to the tracker."""
    images = images[:, : 3 if images.shape[1] >= 3 else 1]  # what a PNG shows of other numbers of channels
    columns = max(d for d in range(1, math.isqrt(len(images)) + 1) if len(images) % d == 0)
    pictures = EtaDDIMPipeline.numpy_to_pil(images.permute(0, 2, 3, 1).numpy() / 255)
    grid = make_image_grid(pictures, len(images) // columns, columns)
    path = Path(args.output_dir, "samples", f"step-{step:06d}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
    grid.save(Path(args.output_dir, "sample.png"))  # the picture of the model card
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": images.numpy()}, step=step)
        elif hasattr(tracker, "log_images"):
            tracker.log_images({"samples": [grid]}, step=step)


def prepare_evaluation(
    args: argparse.Namespace, dataset: ImageDataset, device: torch.device
) -> Callable[[torch.Tensor], dict[str, float]]:
    """
    Takes the features of the training images, in 8 bits, cropped and mirrored as in the first epoch. Returns what
    measures the distances of generated images to them.
    """
    try:
        from evaluate import extract_features, frechet_distance, kernel_distance, load_network
    except ImportError as error:
        raise ValueError(f"`eval_every` needs the packages of evaluate.py: pip install '.[eval]' ({error})") from error
    if dataset.channels not in (1, 3):
        raise ValueError(f"`eval_every` needs gray or colour images, but these have {dataset.channels} channels.")
    try:
        with torch.random.fork_rng(devices=[]):  # a network draws weights before it loads others
            network = load_network(args.eval_features, args.eval_weights, device)
    except Exception as error:
        raise ValueError(f"`eval_features` {args.eval_features!r} cannot be loaded: {error}") from error
    if min(args.eval_num_images, len(dataset)) <= network.num_features:
        raise ValueError(
            f"`eval_features` {args.eval_features!r} needs more than {network.num_features} images, but "
            f"`eval_num_images` is {args.eval_num_images} and {len(dataset)} images are trained on."
        )
    images = torch.stack(
        [((image + 1) * 127.5).round().byte() for image, _ in map(dataset.__getitem__, range(len(dataset)))]
    )
    reference = extract_features(images, network)

    def distances(images: torch.Tensor) -> dict[str, float]:
        features = extract_features(images, network)
        kernel, _ = kernel_distance(features, reference)
        return {"eval/frechet": frechet_distance(features, reference), "eval/kernel": kernel}

    return distances


# ---------------------------------------------------------------------------------------------------------------- main


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """
    Gathers Ctrl-C and SIGTERM (a cluster's warning), so that the training can stop between two steps. The third is not
    waited for: one Ctrl-C in a terminal comes twice under torchrun, which hands it on.
    """
    received: list[int] = []

    def note(number: int, frame):
        received.append(number)
        if len(received) > 2:
            raise KeyboardInterrupt

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def ignore_signals(worker: int):
    """For the processes that load images: a signal to all is for the one that trains."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def seeded_batches(
    dataloader: torch.utils.data.DataLoader, args: argparse.Namespace, step: int, steps_per_epoch: int
) -> Iterator[tuple[tuple[int, ...], list[torch.Tensor]]]:
    """The batches from an optimizer step on, epoch after epoch, each with the seed of its randomness."""
    epoch, steps_done = divmod(step, steps_per_epoch)
    batches_done = steps_done * args.gradient_accumulation_steps
    while True:
        batches = skip_first_batches(dataloader, batches_done) if batches_done else dataloader
        batches.set_epoch(epoch)  # type: ignore[union-attr]
        for index, batch in enumerate(batches, start=batches_done):
            yield (args.seed, epoch, index), batch
        epoch, batches_done = epoch + 1, 0


def resume_command() -> str:
    """That of this run, without what is secret or would be done again."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--hub_token")
    parser.add_argument("--resume_from_checkpoint")
    parser.add_argument("--overwrite_output_dir", action="store_true")
    _, others = parser.parse_known_args(sys.argv)
    return shlex.join([*others, "--resume_from_checkpoint", "latest"])


def main(argv: list[str] | None = None) -> float:
    """Trains, and returns the mean loss of the last steps that were logged."""
    args = parse_args(argv)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # several processes on CPUs find each other only if told
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.logger == "none" else args.logger,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=os.path.join(args.output_dir, "logs")),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    set_seed(args.seed)

    # 1. everything that can be refused is looked at before anything is written
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"`distributed_type` {accelerator.distributed_type.value} is not supported: EMA, previews and checkpoints "
            "need the whole model and optimizer in each process. Use MULTI_GPU (DDP)."
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would use float32
        raise ValueError("`mixed_precision` 'fp16' needs a GPU; use 'bf16' or 'no' on a CPU.")
    if args.logger != "none" and not accelerator.log_with:  # accelerate would go on without
        raise ValueError(f"`logger` is {args.logger!r}, but accelerate finds no such package.")
    output_dir = Path(args.output_dir)
    checkpoint = find_checkpoint(args)
    check_output_dir(args)
    noise_scheduler = EtaDDIMScheduler(
        num_train_timesteps=args.ddpm_num_steps,
        beta_schedule=args.ddpm_beta_schedule,
        prediction_type=args.prediction_type,
        timestep_spacing=args.timestep_spacing,
        clip_sample=args.clip_sample,
        rescale_betas_zero_snr=args.rescale_betas_zero_snr,
    )
    with accelerator.local_main_process_first():  # which fills the cache of `datasets`
        found = find_images(args)
    dataset = ImageDataset(args, *found)
    if dataset.images is None:
        logger.warning("The images do not fit in memory and are decoded in each epoch. See --dataloader_num_workers.")
    num_classes = None if dataset.class_names is None else len(dataset.class_names)
    global_batch_size = args.train_batch_size * accelerator.num_processes
    if len(dataset) < global_batch_size:
        raise ValueError(
            f"`train_batch_size` over all processes is {global_batch_size}, but there are {len(dataset)} images."
        )
    unet = build_unet(args, dataset.channels, num_classes)
    accumulation, batches_per_epoch = args.gradient_accumulation_steps, len(dataset) // global_batch_size
    steps_per_epoch = math.ceil(batches_per_epoch / accumulation)
    max_train_steps = args.max_train_steps or args.num_epochs * steps_per_epoch
    if checkpoint is not None:
        check_resumed_arguments(args, checkpoint, max_train_steps, dataset.class_names)
    distances = None
    if args.eval_every is not None and accelerator.is_main_process:
        distances = prepare_evaluation(args, dataset, accelerator.device)
    repo_id = create_hub_repo(args) if args.push_to_hub and accelerator.is_main_process else None

    # 2. optimizer, EMA, schedules. The learning rate is stepped here, once for each optimizer step.
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    unet.to(memory_format=memory_format)
    ema = None
    if args.use_ema:
        ema = EMAModel(
            unet.parameters(),
            decay=args.ema_max_decay,
            use_ema_warmup=True,
            inv_gamma=args.ema_inv_gamma,
            power=args.ema_power,
            foreach=True,
        )
        ema.to(accelerator.device)
        accelerator.register_for_checkpointing(ema)
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
        fused=True,
    )
    lr_scheduler = get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=max_train_steps
    )
    accelerator.register_for_checkpointing(lr_scheduler)
    dataloader = torch.utils.data.DataLoader(
        dataset,
        args.train_batch_size,
        drop_last=True,
        num_workers=args.dataloader_num_workers,
        worker_init_fn=ignore_signals,
        pin_memory=accelerator.device.type == "cuda",
    )
    model, optimizer, dataloader = accelerator.prepare(unet, optimizer, dataloader)  # `unet` is what `model` wraps
    weights = loss_weights(noise_scheduler, args.snr_gamma).to(accelerator.device)
    noise_scheduler.set_timesteps(args.ddpm_num_steps, device=accelerator.device)  # puts its table there

    preview_labels, eval_labels = None, None
    if num_classes is not None:
        preview_labels = range(num_classes)
        number = args.eval_num_images  # with classes as frequent as in the data
        eval_labels = [dataset.labels[k * len(dataset) // number] for k in range(number)]

    global_step = 0
    if checkpoint is not None:
        try:
            accelerator.load_state(str(checkpoint))
        except Exception as error:
            raise ValueError(f"`resume_from_checkpoint` {checkpoint} cannot be loaded: {error}") from error
        global_step = step_of(checkpoint)

    # 3. from here on files are written
    record = {name: value for name, value in vars(args).items() if name != "hub_token"}
    record["class_names"] = dataset.class_names
    if accelerator.is_main_process:
        lock(output_dir)
        if args.overwrite_output_dir:
            delete_outputs(output_dir)
        for path in output_dir.glob("unfinished-checkpoint-*"):
            shutil.rmtree(path)
        write_whole(output_dir / "training_args.json", json.dumps(record, indent=2) + "\n")
        trim_loss_log(output_dir / LOSS_LOG, global_step)
    accelerator.wait_for_everyone()
    accelerator.init_trackers(
        "train",
        config={name: str(value) for name, value in record.items()},
        init_kwargs={"tensorboard": {"purge_step": global_step + 1}},  # hides what a killed run logged after it
    )
    logger.info(
        f"{len(dataset)} images, {sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M parameters, "
        f"{accelerator.num_processes} x {accelerator.device.type}, step {global_step} of {max_train_steps}, "
        f"{global_batch_size * args.gradient_accumulation_steps} images a step"
    )

    @contextlib.contextmanager
    def trained_pipeline() -> Iterator[EtaDDIMPipeline]:
        """Has the EMA weights, if there are some, until the training goes on."""
        if ema is not None:
            ema.store(unet.parameters())
            ema.copy_to(unet.parameters())
        unet.eval()
        pipeline = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler.from_config(noise_scheduler.config))
        pipeline.set_progress_bar_config(disable=True)
        try:
            yield pipeline
        finally:
            unet.train()
            if ema is not None:
                ema.restore(unet.parameters())

    def log(values: dict[str, float]):
        accelerator.log(values, step=global_step)
        if accelerator.is_main_process:
            with open(output_dir / LOSS_LOG, "a") as file:
                file.write(json.dumps({"step": global_step, **values}) + "\n")

    # 4. the loop
    is_quiet = not accelerator.is_main_process
    progress = tqdm(total=max_train_steps, initial=global_step, desc="Steps", mininterval=1.0, disable=is_quiet)
    recent_losses: list[tuple[torch.Tensor, torch.Tensor]] = []
    mean_loss = math.nan
    is_stopped = False
    asked: torch.Tensor | None = None
    batches = seeded_batches(dataloader, args, global_step, steps_per_epoch)
    unet.train()
    with noted_signals() as signals:
        while global_step < max_train_steps and not is_stopped:
            seed, (images, labels) = next(batches)
            noisy_images, timesteps, target, is_dropped = training_batch(
                images, noise_scheduler, seed, accelerator, args.noise_offset, args.label_dropout
            )
            torch.manual_seed(mixed((*seed, accelerator.process_index + 1)))  # of dropout
            class_labels = None if num_classes is None else labels.masked_fill(is_dropped, num_classes)
            group = min(accumulation, batches_per_epoch - seed[-1] // accumulation * accumulation)  # less at the end
            with accelerator.accumulate(model):
                prediction = model(noisy_images.to(memory_format=memory_format), timesteps, class_labels).sample
                loss = (prediction.float() - target).square().mean(dim=(1, 2, 3)) * weights[timesteps]
                accelerator.backward(loss.mean() * accumulation / group)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            recent_losses.append((loss.detach(), timesteps))
            if not accelerator.sync_gradients:
                continue

            lr_scheduler.step()
            if ema is not None:
                ema.step(unet.parameters())
            global_step += 1
            progress.update()
            if accelerator.num_processes == 1:
                is_stopped = len(signals) > 0
            else:  # whether any process had got one a step ago: that answer is there, and nobody waits for it
                is_stopped = asked is not None and asked.item() > 0
                asked = accelerator.reduce(torch.full((), float(len(signals)), device=accelerator.device))
            is_last = global_step == max_train_steps
            checkpoint_is_due = global_step % args.checkpointing_steps == 0 or is_last or is_stopped
            if global_step % args.logging_steps == 0 or checkpoint_is_due:
                values = mean_losses(accelerator, recent_losses, args.ddpm_num_steps)
                values["lr"] = lr_scheduler.get_last_lr()[0]
                recent_losses.clear()
                mean_loss = values["loss"]
                if not math.isfinite(mean_loss):
                    raise ValueError(
                        f"The loss is {mean_loss} at step {global_step}, with `learning_rate` {args.learning_rate}. "
                        f"Checkpoints before it: {[str(path) for path in list_checkpoints(output_dir)]}"
                    )
                progress.set_postfix(loss=f"{mean_loss:.4f}", lr=f"{values['lr']:.1e}", refresh=False)
                log(values)
            try:
                if global_step % args.save_images_steps == 0 or is_last:
                    with trained_pipeline() as pipeline:
                        images = sample_images(accelerator, pipeline, args, args.eval_batch_size, preview_labels)
                    if accelerator.is_main_process:
                        save_preview(accelerator, args, images, global_step)
                if args.eval_every is not None and (global_step % args.eval_every == 0 or is_last):
                    with trained_pipeline() as pipeline:
                        images = sample_images(accelerator, pipeline, args, args.eval_num_images, eval_labels)
                    if distances is not None:
                        log(distances(images))
            except Exception:
                if accelerator.num_processes == 1:  # what was trained is not lost; of several, some may wait elsewhere
                    save_checkpoint(accelerator, args, global_step)
                raise
            if checkpoint_is_due:
                save_checkpoint(accelerator, args, global_step)
    progress.close()
    if is_stopped and not is_last:
        accelerator.end_training()
        logger.info(f"Stopped at step {global_step}. Continue, with the same launcher, by: {resume_command()}")
        raise SystemExit(130)

    # 5. the pipeline
    if accelerator.is_main_process:
        with trained_pipeline() as pipeline:
            pipeline.save_pretrained(output_dir)  # whatever becomes of the upload
            logger.info(f"The pipeline is in {output_dir}; loss of the last steps {mean_loss:.4f}.")
            if repo_id is not None:
                private = True if args.hub_private_repo else None
                pipeline.save_pretrained(
                    output_dir, push_to_hub=True, repo_id=repo_id, private=private, token=args.hub_token
                )
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return mean_loss


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
