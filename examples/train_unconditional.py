# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains a `UNet2DModel` on images, as a DDPM, and saves a pipeline that samples it by DDIM.

    accelerate launch examples/train_unconditional.py --train_data_dir photos --output_dir outputs/photos

The output folder holds the pipeline (`EtaDDIMPipeline.from_pretrained` loads it), `samples/` with preview grids,
`checkpoint-N/` to resume from, and `logs/` for TensorBoard.

All randomness of a step comes from the seed and the number of the step, never from what ran before, so that a resumed
run continues on the same images and the same noise as one that was not interrupted.
"""

import argparse
import io
import json
import logging
import math
import os
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import Accelerator, skip_first_batches
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import UNet2DModel
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from tqdm.auto import tqdm

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, image_generators
from ddim_scheduler.scheduling_ddim import BETA_SCHEDULES, PREDICTION_TYPES, TIMESTEP_SPACINGS

logger = get_logger(__name__, log_level="INFO")

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# what a checkpoint depends on, and a resumed run must therefore not change
FIXED_ARGUMENTS = (
    *("resolution", "channels", "model_config_name_or_path", "block_out_channels", "layers_per_block"),
    *("attention_resolutions", "prediction_type", "ddpm_num_steps", "ddpm_beta_schedule", "use_ema"),
)
OTHER_OUTPUTS = (
    "unet",
    "scheduler",
    "model_index.json",
    "pipeline.py",
    "sample.png",
    "samples",
    "logs",
    "training_args.json",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a UNet2DModel on images and sample it by DDIM.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group("data (one of the first two is needed)")
    group.add_argument("--train_data_dir", help="folder of images, searched with its sub-folders")
    group.add_argument("--dataset_name", help="data set of the Hub, or what `datasets.load_dataset` takes")
    group.add_argument("--dataset_config_name", help="configuration of the data set")
    group.add_argument("--image_column", default="image", help="column of the data set that holds the images")
    group.add_argument("--cache_dir", help="where `datasets` keeps its files")
    group.add_argument("--resolution", type=int, default=64, help="height and width of the training images")
    group.add_argument("--channels", type=int, choices=(1, 3), help="1: gray, 3: colour (default: as the images are)")
    group.add_argument("--center_crop", action="store_true", help="crop images that are not square at their centre")
    group.add_argument("--random_flip", action="store_true", help="mirror images at random")

    group = parser.add_argument_group("model")
    group.add_argument("--model_config_name_or_path", help="config of a UNet2DModel, instead of the three below")
    group.add_argument(
        "--block_out_channels", type=int, nargs="+", default=[128, 256, 256, 256], help="width per level"
    )
    group.add_argument("--layers_per_block", type=int, default=2, help="residual blocks per level")
    group.add_argument("--attention_resolutions", type=int, nargs="*", default=[16], help="map sizes with attention")

    group = parser.add_argument_group("diffusion")
    group.add_argument("--prediction_type", default="epsilon", choices=PREDICTION_TYPES, help="what the model predicts")
    group.add_argument("--ddpm_num_steps", type=int, default=1000, help="number of noise levels T")
    group.add_argument("--ddpm_beta_schedule", default="linear", choices=BETA_SCHEDULES, help="noise schedule")
    group.add_argument("--timestep_spacing", default="leading", choices=TIMESTEP_SPACINGS, help="sampling grid")

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
    group.add_argument("--seed", type=int, default=0, help="seed of weights, data order, noise and previews")

    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", default="outputs/ddim-model", help="folder for all that the run writes")
    group.add_argument("--overwrite_output_dir", action="store_true", help="delete what a former run wrote there first")
    group.add_argument("--save_images_steps", type=int, default=1000, help="optimizer steps between previews")
    group.add_argument(
        "--eval_batch_size", type=int, default=64, help="number of images of a preview, over all processes"
    )
    group.add_argument("--ddpm_num_inference_steps", type=int, default=50, help="DDIM steps of a preview")
    group.add_argument("--checkpointing_steps", type=int, default=1000, help="optimizer steps between checkpoints")
    group.add_argument("--checkpoints_total_limit", type=int, help="checkpoints to keep; the oldest are deleted")
    group.add_argument("--resume_from_checkpoint", help="folder of a checkpoint, or 'latest' in the output folder")
    group.add_argument("--logger", default="tensorboard", choices=("tensorboard", "wandb", "none"), help="tracker")
    args = parser.parse_args(argv)

    if (args.train_data_dir is None) == (args.dataset_name is None):
        parser.error("give either --train_data_dir or --dataset_name")
    if args.train_data_dir is not None and not os.path.isdir(args.train_data_dir):
        parser.error(f"--train_data_dir is no folder: {args.train_data_dir}")
    positive = "resolution layers_per_block ddpm_num_steps train_batch_size gradient_accumulation_steps num_epochs "
    positive += "max_train_steps learning_rate save_images_steps eval_batch_size checkpointing_steps "
    positive += "checkpoints_total_limit max_grad_norm ddpm_num_inference_steps"
    positive += " adam_epsilon ema_inv_gamma ema_power"
    for name in positive.split():
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} must be positive, but is {getattr(args, name)}")
    for name in ("seed", "lr_warmup_steps", "adam_weight_decay"):
        if not 0 <= getattr(args, name) < math.inf:
            parser.error(f"--{name} must not be negative, but is {getattr(args, name)}")
    for name in ("adam_beta1", "adam_beta2", "ema_max_decay"):
        if not 0 <= getattr(args, name) < 1:
            parser.error(f"--{name} must be in [0, 1), but is {getattr(args, name)}")
    if min(args.block_out_channels) < 1:
        parser.error(f"--block_out_channels must be positive, but are {args.block_out_channels}")
    if args.ddpm_num_inference_steps > args.ddpm_num_steps:
        parser.error(
            f"--ddpm_num_inference_steps must be at most --ddpm_num_steps, but is {args.ddpm_num_inference_steps}"
        )
    if args.overwrite_output_dir and args.resume_from_checkpoint:
        parser.error("--overwrite_output_dir would delete what --resume_from_checkpoint needs")
    return args


# ---------------------------------------------------------------------------------------------------------------- data


class ImageDataset(torch.utils.data.Dataset):
    """
    All images, decoded once and kept in memory, the short side at `resolution`; 8-bit images as bytes, others as float.

    An item is one of them, cropped and maybe mirrored, float32 of shape (C, resolution, resolution) in [-1, 1]. Order,
    crops and flips are drawn from the seed and the epoch.
    """

    def __init__(self, args: argparse.Namespace):
        self.resolution, self.center_crop, self.random_flip = args.resolution, args.center_crop, args.random_flip
        self.seed = args.seed
        images = [_decode(item, args.channels) for item in tqdm(_image_files(args), desc="Decoding", leave=False)]
        self.channels = max(len(image) for image in images)
        self.images = [_resize(image.expand(self.channels, -1, -1), args.resolution) for image in images]
        self.set_epoch(0)

    def set_epoch(self, epoch: int):
        """Shuffles. Called by accelerate at the start of each epoch."""
        self.epoch = epoch
        self.order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> torch.Tensor:
        index = self.order[position]
        image = self.images[index]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        space = [size - self.resolution for size in image.shape[1:]]
        top, left = (n // 2 if self.center_crop else int(rng.integers(n + 1)) for n in space)
        image = image[:, top : top + self.resolution, left : left + self.resolution]
        if self.random_flip and rng.random() < 0.5:
            image = image.flip(-1)
        scale = 255 if image.dtype == torch.uint8 else 1
        return image.float() / scale * 2 - 1


def _image_files(args: argparse.Namespace):
    """The images of the folder or data set, as paths or encoded bytes."""
    if args.train_data_dir is not None:
        files = Path(args.train_data_dir).rglob("*")
        paths = sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if not paths:
            raise ValueError(f"`train_data_dir` holds no images: {args.train_data_dir}")
        return paths
    data = datasets.load_dataset(args.dataset_name, args.dataset_config_name, cache_dir=args.cache_dir, split="train")
    if args.image_column not in data.column_names:
        raise ValueError(f"`image_column` must be one of {data.column_names}, but is {args.image_column!r}.")
    return data.cast_column(args.image_column, datasets.Image(decode=False))[args.image_column]


def _decode(item: Path | dict, channels: int | None) -> torch.Tensor:
    """An image file as (1 or 3, H, W): uint8, or float32 in [0, 1] where 8 bits do not hold it."""
    source = item if isinstance(item, Path) else io.BytesIO(item["bytes"]) if item["bytes"] else item["path"]
    try:
        with PIL.Image.open(source) as image:
            image.load()
            if image.mode.startswith(("I", "F")):  # 16-bit or float gray
                pixels = np.asarray(image, dtype=np.float32) / (1 if image.mode == "F" else 65535)
                return torch.from_numpy(pixels)[None].expand(channels or 1, -1, -1)
            gray = channels == 1 or (channels is None and image.mode in ("1", "L", "LA"))
            pixels = np.array(image.convert("L" if gray else "RGB"))
    except Exception as error:
        name = item if isinstance(item, Path) else item["path"]
        raise ValueError(f"The training image {name} cannot be read: {error}") from error
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1)


def _resize(image: torch.Tensor, resolution: int) -> torch.Tensor:
    """Scales the short side to the resolution."""
    scale = resolution / min(image.shape[1:])
    if scale == 1:
        return image.contiguous()
    size = [max(resolution, round(scale * n)) for n in image.shape[1:]]
    pixels = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return pixels.round().clamp(0, 255).byte() if image.dtype == torch.uint8 else pixels


# --------------------------------------------------------------------------------------------------------------- model


def build_unet(args: argparse.Namespace, channels: int) -> UNet2DModel:
    if args.model_config_name_or_path is not None:
        config = UNet2DModel.load_config(args.model_config_name_or_path)
        unet = UNet2DModel.from_config(config)
        if unet.config.in_channels != channels:
            raise ValueError(f"The UNet takes {unet.config.in_channels} channels, but the images have {channels}.")
        return unet
    downsamplings = len(args.block_out_channels) - 1
    if args.resolution % 2**downsamplings:
        raise ValueError(
            f"`resolution` must be a multiple of {2**downsamplings} for {downsamplings + 1} levels in "
            f"`block_out_channels`, but is {args.resolution}."
        )
    attention = [args.resolution // 2**i in args.attention_resolutions for i in range(downsamplings + 1)]
    return UNet2DModel(
        sample_size=args.resolution,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(args.block_out_channels),
        layers_per_block=args.layers_per_block,
        norm_num_groups=math.gcd(32, *args.block_out_channels),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
    )


def training_batch(
    images: torch.Tensor, noise_scheduler: EtaDDIMScheduler, seed: tuple[int, ...], accelerator: Accelerator
):
    """
    Noisy images, timesteps and the model's target for one forward pass. The noise of the whole batch over all processes
    is drawn from the seed and each process takes its share, so that it does not depend on their number.
    """
    generator = torch.Generator(images.device).manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    batch, rank = len(images), accelerator.process_index
    mine = slice(rank * batch, (rank + 1) * batch)
    total = batch * accelerator.num_processes
    noise = torch.randn((total, *images.shape[1:]), generator=generator, device=images.device)[mine]
    timesteps = torch.randint(len(noise_scheduler), (total,), generator=generator, device=images.device)[mine]

    noisy_images = noise_scheduler.add_noise(images, noise, timesteps)
    if noise_scheduler.config.prediction_type == "sample":
        return noisy_images, timesteps, images
    if noise_scheduler.config.prediction_type == "v_prediction":
        return noisy_images, timesteps, noise_scheduler.get_velocity(images, noise, timesteps)
    return noisy_images, timesteps, noise


# -------------------------------------------------------------------------------------------------------------- output


def find_checkpoint(args: argparse.Namespace) -> Path | None:
    if args.resume_from_checkpoint is None:
        return None
    if args.resume_from_checkpoint != "latest":
        path = Path(args.resume_from_checkpoint)
        if not (path.is_dir() and CHECKPOINT_NAME.fullmatch(path.name)):
            raise ValueError(f"`resume_from_checkpoint` is no folder named checkpoint-N: {path}")
        return path
    checkpoints = list_checkpoints(args.output_dir)
    if not checkpoints:
        raise ValueError(f"`resume_from_checkpoint` is 'latest', but {args.output_dir} holds no checkpoint-N.")
    return checkpoints[-1]


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> int:
    """Restores the state of a run and returns its step."""
    try:
        accelerator.load_state(str(checkpoint))
    except Exception as error:
        older = [path for path in list_checkpoints(str(checkpoint.parent)) if path != checkpoint]
        raise ValueError(
            f"The checkpoint {checkpoint} cannot be loaded ({error}). Other checkpoints: {[*map(str, older)]}"
        ) from error
    return int(checkpoint.name.split("-")[1])


def check_resumed_arguments(args: argparse.Namespace, checkpoint: Path, max_train_steps: int):
    """Refuses to continue a run that is finished, or one of another model or objective."""
    if int(checkpoint.name.split("-")[1]) >= max_train_steps:
        raise ValueError(f"`resume_from_checkpoint` {checkpoint} is not before the last step, {max_train_steps}.")
    record = checkpoint.parent / "training_args.json"
    former = json.loads(record.read_text()) if record.is_file() else {}
    for name in FIXED_ARGUMENTS:
        if name in former and former[name] != getattr(args, name):
            raise ValueError(f"`{name}` is {getattr(args, name)!r}, but {former[name]!r} in the run of {checkpoint}.")


def list_checkpoints(output_dir: str) -> list[Path]:
    """The checkpoint folders, oldest first."""
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if CHECKPOINT_NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.split("-")[1]))


def delete_outputs(output_dir: str):
    """Deletes what a former run wrote, and nothing else."""
    for path in [*list_checkpoints(output_dir), *(Path(output_dir, name) for name in OTHER_OUTPUTS)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def save_checkpoint(accelerator: Accelerator, args: argparse.Namespace, step: int):
    """Writes a checkpoint under a temporary name and renames it, so that one with a proper name is whole."""
    path = Path(args.output_dir, f"checkpoint-{step}")
    unfinished = path.with_name(f"unfinished-{path.name}")
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(path, ignore_errors=True)
        unfinished.rename(path)
        if args.checkpoints_total_limit is not None:
            for old in list_checkpoints(args.output_dir)[: -args.checkpoints_total_limit]:
                shutil.rmtree(old)


def save_preview(accelerator: Accelerator, pipeline: EtaDDIMPipeline, args: argparse.Namespace, step: int):
    """Samples images over all processes, from the same noise each time, and writes them as PNG and to the tracker."""
    with accelerator.split_between_processes(list(range(args.eval_batch_size)), apply_padding=True) as indices:
        images = pipeline(
            batch_size=len(indices),
            num_inference_steps=args.ddpm_num_inference_steps,
            generator=image_generators(args.seed, indices),
            output_type="pt",
        ).images
    images = accelerator.gather(images)[: args.eval_batch_size].float().cpu()
    if accelerator.is_main_process:
        columns = max(d for d in range(1, math.isqrt(len(images)) + 1) if len(images) % d == 0)
        grid = make_image_grid(
            pipeline.numpy_to_pil(images.permute(0, 2, 3, 1).numpy()), len(images) // columns, columns
        )
        path = Path(args.output_dir, "samples", f"step-{step:06d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        grid.save(path)
        grid.save(Path(args.output_dir, "sample.png"))  # the picture of the model card
        for tracker in accelerator.trackers:
            tracker.log_images({"samples": images.numpy()}, step=step)


# ---------------------------------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> float:
    """Trains, and returns the mean loss of the last steps that were logged."""
    args = parse_args(argv)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.logger == "none" else args.logger,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=os.path.join(args.output_dir, "logs")),
    )
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    set_seed(args.seed)

    # 1. everything that can be refused is looked at before anything is written
    checkpoint = find_checkpoint(args)
    output_dir = Path(args.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"`output_dir` is no folder: {output_dir}")
    if output_dir.exists() and any(output_dir.iterdir()) and not (checkpoint or args.overwrite_output_dir):
        raise ValueError(
            f"`output_dir` is not empty: {output_dir}. See --resume_from_checkpoint, --overwrite_output_dir."
        )
    noise_scheduler = EtaDDIMScheduler(
        num_train_timesteps=args.ddpm_num_steps,
        beta_schedule=args.ddpm_beta_schedule,
        prediction_type=args.prediction_type,
        timestep_spacing=args.timestep_spacing,
    )
    with accelerator.main_process_first():
        dataset = ImageDataset(args)
    global_batch_size = args.train_batch_size * accelerator.num_processes
    if len(dataset) < global_batch_size:
        raise ValueError(
            f"`train_batch_size` over all processes is {global_batch_size}, but there are {len(dataset)} images."
        )
    unet = build_unet(args, dataset.channels)

    # 2. optimizer, EMA, schedules. The learning rate is stepped here, once for each optimizer step.
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
    steps_per_epoch = math.ceil(len(dataset) // global_batch_size / args.gradient_accumulation_steps)
    max_train_steps = args.max_train_steps or args.num_epochs * steps_per_epoch
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=max_train_steps,
    )
    accelerator.register_for_checkpointing(lr_scheduler)
    dataloader = torch.utils.data.DataLoader(dataset, args.train_batch_size, drop_last=True)
    unet, optimizer, dataloader = accelerator.prepare(unet, optimizer, dataloader)

    global_step = 0
    if checkpoint is not None:
        check_resumed_arguments(args, checkpoint, max_train_steps)
        global_step = load_checkpoint(accelerator, checkpoint)

    # 3. from here on files are written
    if accelerator.is_main_process:
        if args.overwrite_output_dir:
            delete_outputs(args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "training_args.json").write_text(json.dumps(vars(args), indent=2) + "\n")
    accelerator.wait_for_everyone()
    accelerator.init_trackers("train", config={k: str(v) for k, v in vars(args).items()})
    logger.info(
        f"{len(dataset)} images, {sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M parameters, "
        f"{accelerator.num_processes} x {accelerator.device.type}, step {global_step} of {max_train_steps}, "
        f"{global_batch_size * args.gradient_accumulation_steps} images a step"
    )

    def make_pipeline() -> EtaDDIMPipeline:
        scheduler = EtaDDIMScheduler.from_config(noise_scheduler.config)
        pipeline = EtaDDIMPipeline(unet=accelerator.unwrap_model(unet), scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def with_ema_weights(function, *function_args):
        if ema is not None:
            ema.store(unet.parameters())
            ema.copy_to(unet.parameters())
        unet.eval()
        function(*function_args)
        unet.train()
        if ema is not None:
            ema.restore(unet.parameters())

    # 4. the loop
    progress = tqdm(
        total=max_train_steps,
        initial=global_step,
        desc="Steps",
        mininterval=1.0,
        disable=not accelerator.is_main_process,
    )
    recent_losses: list[torch.Tensor] = []
    mean_loss = math.nan
    unet.train()
    while global_step < max_train_steps:
        epoch, steps_done = divmod(global_step, steps_per_epoch)
        batches_done = steps_done * args.gradient_accumulation_steps
        batches = skip_first_batches(dataloader, batches_done) if batches_done else dataloader
        batches.set_epoch(epoch)
        for index, images in enumerate(batches, start=batches_done):
            seed = (args.seed, epoch, index)
            noisy_images, timesteps, target = training_batch(images, noise_scheduler, seed, accelerator)
            with accelerator.accumulate(unet):
                prediction = unet(noisy_images, timesteps).sample
                loss = F.mse_loss(prediction.float(), target.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            recent_losses.append(loss.detach())
            if not accelerator.sync_gradients:
                continue

            lr_scheduler.step()
            if ema is not None:
                ema.step(unet.parameters())
            global_step += 1
            progress.update()
            last = global_step == max_train_steps
            checkpoint_is_due = global_step % args.checkpointing_steps == 0 or last
            if global_step % 50 == 0 or checkpoint_is_due:
                mean_loss = accelerator.reduce(torch.stack(recent_losses).mean(), "mean").item()
                recent_losses.clear()
                progress.set_postfix(loss=f"{mean_loss:.4f}", lr=f"{lr_scheduler.get_last_lr()[0]:.1e}", refresh=False)
                accelerator.log({"loss": mean_loss, "lr": lr_scheduler.get_last_lr()[0]}, step=global_step)
            if global_step % args.save_images_steps == 0 or last:
                with_ema_weights(save_preview, accelerator, make_pipeline(), args, global_step)
            if checkpoint_is_due:
                save_checkpoint(accelerator, args, global_step)
            if last:
                break

    # 5. the pipeline
    progress.close()
    if accelerator.is_main_process:
        with_ema_weights(make_pipeline().save_pretrained, output_dir)
        logger.info(f"The pipeline is in {output_dir}; loss of the last steps {mean_loss:.4f}.")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return mean_loss


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
