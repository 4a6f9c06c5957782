# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The options of the training command, and the command that resumes a run."""

import argparse
import math
import os
import shlex
import sys
import zipfile

import PIL.ImageColor
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from diffusers.optimization import SchedulerType

from ..command_line import Parser, launched_as, started_by
from ..evaluation import FEATURES
from ..fitting import TEACHER_STEPS
from ..scheduling_ddim import BETA_SCHEDULES, PREDICTION_TYPES, TIMESTEP_SPACINGS
from .model import attention_heights

SHARES = ("validation_share", "adam_beta1", "adam_beta2", "ema_max_decay", "label_dropout")
MAY_BE_ZERO = (
    "seed",
    "lr_warmup_steps",
    "adam_weight_decay",
    "noise_offset",
    "image_cache_gb",
    "dataloader_num_workers",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """
    Reads the options.

    Args:
        argv: The options; those of the process if not given.

    Returns:
        One attribute for each option; `resolution` is always [height, width], `attention_resolutions` a list.

    Raises:
        SystemExit: After `--help`, or if an option is not known or has a value that it cannot have; the message, on
            stderr, names it.
    """
    launched = launched_as()
    prog = shlex.join(["python", *launched])
    parser = Parser(
        usage=f"{prog} --train_data_dir FOLDER --output_dir FOLDER [options]",
        description="Train a UNet2DModel on images.",
        formatter_class=_HelpFormatter,
    )
    for add_options in (
        *(_add_data, _add_model, _add_training, _add_output, _add_hub),
        *(_add_more_data, _add_more_model, _add_diffusion, _add_optimisation, _add_more_output, _add_evaluation),
    ):
        add_options(parser)
    args = parser.parse_args(argv)
    _check_numbers(parser, args)
    _check_combinations(parser, args)
    args.resolution = [args.resolution[0], args.resolution[-1]]
    if args.attention_resolutions is None:
        args.attention_resolutions = attention_heights(args.resolution, len(args.block_out_channels))
    return args


def resume_command() -> str:
    """The command line that goes on with this run, launcher included, without what is secret or would be done again."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--hub_token")
    parser.add_argument("--resume_from_checkpoint")
    parser.add_argument("--overwrite_output_dir", action="store_true")
    _, others = parser.parse_known_args(sys.argv[1:])
    return shlex.join([*started_by(), *others, "--resume_from_checkpoint", "latest"])


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default value where there is one, and calls values by short names."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {int: "N", float: "X", _steps_or_share: "X"}.get(action.type, "NAME")

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


# First what is needed on the first day, then the rest, in the same order.


def _add_data(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("data (one of the first two is needed)")
    group.add_argument("--train_data_dir", help="folder (with its sub-folders) or zip archive of images, .npy arrays")
    group.add_argument("--dataset_name", help="data set of the Hub, or folder of `save_to_disk`")
    group.add_argument("--split", help="part of the data set, 'train[:90%%]' for instance (default: train)")
    group.add_argument("--resolution", type=int, nargs="+", default=[64], help="size: one number, or height width")
    group.add_argument("--random_flip", action="store_true", help="mirror images at random")
    group.add_argument(
        "--class_conditional", action="store_true", help="learn the classes: sub-folders, or label column"
    )
    group.add_argument("--condition_dir", help="pictures of the same names that the images are made from")


def _add_model(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("model")
    group.add_argument(
        "--pretrained_model_name_or_path",
        help="start from the weights of a pipeline or UNet, a folder or of the Hub, instead of the three below",
    )
    group.add_argument("--block_out_channels", type=int, nargs="+", default=[128, 256, 256, 256], help="level widths")
    group.add_argument("--layers_per_block", type=int, default=2, help="residual blocks per level")
    group.add_argument(
        "--attention_resolutions",
        type=int,
        nargs="*",
        help="map heights with attention, or none (default: that near 16)",
    )


def _add_training(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("training")
    group.add_argument("--train_batch_size", type=int, default=16, help="images per process and forward pass")
    group.add_argument("--num_epochs", type=int, default=100, help="passes over the data")
    group.add_argument("--max_train_steps", type=int, help="optimizer steps; replaces --num_epochs")
    group.add_argument("--learning_rate", type=float, default=1e-3, help="peak learning rate of AdamW")
    group.add_argument(
        "--use_ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="save and preview the moving average of the weights",
    )
    group.add_argument(
        "--mixed_precision", choices=("no", "fp16", "bf16"), help="default: bf16 where there are instructions for it"
    )


def _add_output(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", default="outputs/ddim-model", help="folder for all that the run writes")
    group.add_argument("--overwrite_output_dir", action="store_true", help="delete what a former run wrote there first")
    group.add_argument("--resume_from_checkpoint", help="a checkpoint, or 'latest': the newest whole one of the output")
    group.add_argument("--checkpointing_steps", type=int, default=1000, help="optimizer steps between checkpoints")
    group.add_argument("--save_images_steps", type=int, default=1000, help="optimizer steps between previews")
    group.add_argument(
        "--logger", default="tensorboard", choices=(*sorted(LOGGER_TYPE_TO_CLASS), "none"), help="tracker of accelerate"
    )


def _add_hub(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("Hub")
    group.add_argument("--push_to_hub", action="store_true", help="upload the result, with a model card")
    group.add_argument("--hub_model_id", help="repository; yours of the output folder's name by default")
    group.add_argument("--hub_private_repo", action="store_true", help="make a private repository, refuse a public one")
    group.add_argument("--hub_token", help="token to use instead of the stored one; it is written nowhere")


def _add_more_data(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("more about the data")
    group.add_argument("--dataset_config_name", help="configuration of the data set")
    group.add_argument("--image_column", default="image", help="column of the data set that holds the images")
    group.add_argument("--label_column", default="label", help="column of the data set that holds the classes")
    group.add_argument("--cache_dir", help="where `datasets` keeps its files")
    group.add_argument("--channels", type=int, help="1: gray, 3: colour, 4: with alpha (default: those of the data)")
    group.add_argument("--background", default="white", help="colour behind transparent pixels")
    group.add_argument("--white_level", type=int, help="white of 16-bit images, 4095 for 12 bits (default: 65535)")
    group.add_argument("--skip_broken", action="store_true", help="leave out images that cannot be read")
    group.add_argument("--validation_share", type=float, help="share of images held out, for a validation loss")
    group.add_argument("--center_crop", action="store_true", help="crop images of another aspect ratio at their centre")
    group.add_argument("--image_cache_gb", type=float, help="memory for decoded images (default: half of what is free)")
    group.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that load images, for each GPU")
    group.add_argument("--label_dropout", type=float, default=0.1, help="share of labels, conditions left out")


def _add_more_model(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("more about the model")
    group.add_argument("--model_config_name_or_path", help="config of a UNet2DModel, instead of the options above")
    group.add_argument("--gradient_checkpointing", action="store_true", help="less memory, about a third more time")
    group.add_argument("--channels_last", action="store_true", help="memory layout that is faster on GPUs")


def _add_diffusion(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("diffusion")
    group.add_argument(
        "--prediction_type", default="v_prediction", choices=PREDICTION_TYPES, help="what the model predicts"
    )
    group.add_argument("--ddpm_num_steps", type=int, default=1000, help="number of noise levels T")
    group.add_argument("--ddpm_beta_schedule", default="squaredcos_cap_v2", choices=BETA_SCHEDULES, help="betas")
    group.add_argument(
        "--rescale_betas_zero_snr", action="store_true", help="no signal at the last t; not with epsilon"
    )
    group.add_argument("--snr_gamma", type=float, help="min-SNR weights, 5 in the paper (default: no weights)")
    group.add_argument("--noise_offset", type=float, default=0.0, help="std of the noise that an image has as a whole")
    group.add_argument("--timestep_spacing", default="trailing", choices=TIMESTEP_SPACINGS, help="sampling grid")
    group.add_argument(
        "--clip_sample",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="clip the predicted image in sampling; the paper's does not",
    )


def _add_optimisation(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("optimisation")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="forward passes per optimizer step")
    group.add_argument(
        "--lr_scheduler",
        default="cosine",
        choices=sorted(s.value for s in SchedulerType if s is not SchedulerType.PIECEWISE_CONSTANT),
        help="learning rate schedule",
    )
    group.add_argument(
        "--lr_warmup_steps", type=_steps_or_share, default=0.05, help="steps of warm-up, or a share of all below 1"
    )
    group.add_argument("--adam_beta1", type=float, default=0.9, help="AdamW's first beta")
    group.add_argument("--adam_beta2", type=float, default=0.999, help="AdamW's second beta")
    group.add_argument("--adam_weight_decay", type=float, default=1e-6, help="AdamW's weight decay")
    group.add_argument("--adam_epsilon", type=float, default=1e-8, help="AdamW's epsilon")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are scaled down to this norm")
    group.add_argument("--ema_inv_gamma", type=float, default=1.0, help="inverse gamma of the EMA warm-up")
    group.add_argument("--ema_power", type=float, default=0.75, help="power of the EMA warm-up")
    group.add_argument("--ema_max_decay", type=float, default=0.9999, help="largest decay of the EMA")
    group.add_argument("--seed", type=int, default=0, help="seed of weights, data order, noise and previews")


def _add_more_output(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("more about the output")
    group.add_argument(
        "--eval_batch_size", type=int, default=64, help="images of a preview, made at once by all processes"
    )
    group.add_argument("--ddpm_num_inference_steps", type=int, default=50, help="DDIM steps of a preview")
    group.add_argument(
        "--fit_steps", type=int, nargs="+", help="numbers of steps to fit samplers to at the end: 5 10 20 (few steps)"
    )
    group.add_argument("--checkpoints_total_limit", type=int, help="checkpoints to keep; the oldest are deleted")
    group.add_argument("--logging_steps", type=int, default=50, help="optimizer steps between lines of the log")


def _add_evaluation(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("evaluation (as by evaluate.py, against the training images)")
    group.add_argument("--eval_every", type=int, help="optimizer steps between evaluations; the last is at the end")
    group.add_argument("--eval_num_images", type=int, default=2500, help="images to generate")
    group.add_argument("--eval_features", default="inception", choices=FEATURES, help="of 2048, 1280 or 32 numbers")
    group.add_argument("--eval_weights", help="file of the feature network's weights; 'digits' needs it")


def _steps_or_share(text: str) -> int | float:
    """A number of steps, or a share of them below 1, as of `lr_warmup_steps`."""
    number = float(text)
    if number.is_integer():
        return int(number)
    if not number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of steps, or a share below 1, but is {text}")
    return number


def _check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace):
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if type(number) not in (int, float):
                continue
            if name in SHARES and not 0 <= number < 1:
                parser.error(f"--{name} must be in [0, 1), but is {number}")
            if name in MAY_BE_ZERO and not 0 <= number < math.inf:
                parser.error(f"--{name} must not be negative, but is {number}")
            if name not in (*SHARES, *MAY_BE_ZERO) and not 0 < number < math.inf:
                parser.error(f"--{name} must be positive, but is {number}")
    if len(args.resolution) > 2:
        parser.error(f"--resolution must be one or two numbers, but is {args.resolution}")
    highest = min(TEACHER_STEPS, args.ddpm_num_steps)
    if max(args.fit_steps or [0]) > highest:
        parser.error(f"--fit_steps must not exceed {highest}, but are {args.fit_steps}")
    if args.ddpm_num_inference_steps > args.ddpm_num_steps:
        parser.error(
            f"--ddpm_num_inference_steps must not exceed --ddpm_num_steps, but is {args.ddpm_num_inference_steps}"
        )


def _check_combinations(parser: argparse.ArgumentParser, args: argparse.Namespace):
    if (args.train_data_dir is None) == (args.dataset_name is None):
        parser.error("give either --train_data_dir or --dataset_name")
    if args.train_data_dir is not None and not (
        os.path.isdir(args.train_data_dir) or zipfile.is_zipfile(args.train_data_dir)
    ):
        parser.error(f"--train_data_dir is no folder and no zip archive: {args.train_data_dir}")
    if args.condition_dir is not None and args.train_data_dir is None:
        parser.error("--condition_dir belongs to the images of a --train_data_dir")
    if args.condition_dir is not None and not (
        os.path.isdir(args.condition_dir) or zipfile.is_zipfile(args.condition_dir)
    ):
        parser.error(f"--condition_dir is no folder and no zip archive: {args.condition_dir}")
    if args.split is not None and args.dataset_name is None:
        parser.error("--split is that of a --dataset_name")
    try:
        PIL.ImageColor.getrgb(args.background)
    except ValueError:
        parser.error(f"--background must be a colour, 'white' or '#ff0000' for instance, but is {args.background!r}")
    if args.white_level is not None and args.white_level > 65535:
        parser.error(f"--white_level must be at most 65535, but is {args.white_level}")
    if args.pretrained_model_name_or_path and args.model_config_name_or_path:
        parser.error("give either --pretrained_model_name_or_path or --model_config_name_or_path")
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
