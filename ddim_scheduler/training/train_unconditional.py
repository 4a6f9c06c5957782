# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains a `UNet2DModel` on images, as a DDPM, and saves a pipeline that samples it by DDIM.

    accelerate launch -m ddim_scheduler.training --train_data_dir photos --output_dir outputs/photos

The output folder holds the pipeline (`EtaDDIMPipeline.from_pretrained` loads it), `samples/` with preview grids,
`checkpoint-N/` to resume from, and `logs/` with the losses, as JSON lines and for TensorBoard.

This file can be copied, changed, and started by `accelerate launch my_training.py`: its parts are in the package.
"""

import argparse
import logging
import math
import os
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.logging import get_logger
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ddim_scheduler import EtaDDIMScheduler, training
from ddim_scheduler.command_line import run
from ddim_scheduler.image_files import WHITE_LEVEL

logger = get_logger(__name__, log_level="INFO")


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """The processes and devices of `accelerate launch`, and its trackers; sets the precision if none is given."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    cpu = not torch.accelerator.is_available()  # several processes on CPUs find each other only if told
    asked_of_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" as well where nothing was asked
    asked = args.mixed_precision or (None if asked_of_launcher == "no" else asked_of_launcher)
    args.mixed_precision, reason = training.choose_precision(asked, PartialState(cpu=cpu).device)
    accelerator = Accelerator(
        cpu=cpu,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.logger == "none" else args.logger,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=os.path.join(args.output_dir, "logs")),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )
    training.check_accelerator(accelerator, args.logger)
    logger.info(f"Precision: {reason}.")
    return accelerator


def load_datasets(
    args: argparse.Namespace, accelerator: Accelerator
) -> tuple[training.ImageDataset, training.ImageDataset | None]:
    """The images of the folder or data set that is asked for, and those that are held out, if any."""
    with accelerator.local_main_process_first():  # which fills the cache of `datasets`
        if args.train_data_dir is not None:
            found = training.find_folder_images(args.train_data_dir, args.class_conditional)
        else:
            found = training.find_dataset_images(
                args.dataset_name,
                args.dataset_config_name,
                args.split,
                image_column=args.image_column,
                label_column=args.label_column,
                class_conditional=args.class_conditional,
                cache_dir=args.cache_dir,
            )
    settings = {"background": args.background, "skip_broken": args.skip_broken, "seed": args.seed}
    settings |= {"resolution": args.resolution, "image_cache_gb": args.image_cache_gb}
    held_out = None
    if args.validation_share:
        found, held_out = found.split(args.validation_share, args.seed)
    dataset = training.ImageDataset(
        *found,
        channels=args.channels,
        center_crop=args.center_crop,
        random_flip=args.random_flip,
        white_level=args.white_level,
        **settings,
    )
    if dataset.images is None:
        logger.warning("The images do not fit in memory and are decoded in each epoch. See --dataloader_num_workers.")
    if held_out is None:
        return dataset, None
    white_level = args.white_level or WHITE_LEVEL  # a few may be dark
    return dataset, training.ImageDataset(
        *held_out, channels=dataset.channels, center_crop=True, white_level=white_level, **settings
    )


def load_unet(args: argparse.Namespace, channels: int, num_classes: int | None, device: torch.device) -> UNet2DModel:
    """The UNet with random weights."""
    if args.model_config_name_or_path is not None:
        unet = training.unet_from_config(
            args.model_config_name_or_path,
            args.resolution,
            channels,
            num_classes,
            num_train_timesteps=args.ddpm_num_steps,
            device=device,
        )
    else:
        unet = training.build_unet(
            args.resolution,
            channels,
            num_classes,
            block_out_channels=args.block_out_channels,
            layers_per_block=args.layers_per_block,
            attention_resolutions=args.attention_resolutions,
        )
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def make_ema(args: argparse.Namespace, unet: UNet2DModel, device: torch.device) -> EMAModel:
    """The moving average of the weights, which follows them closely at first."""
    ema = EMAModel(
        unet.parameters(),
        decay=args.ema_max_decay,
        use_ema_warmup=True,
        inv_gamma=args.ema_inv_gamma,
        power=args.ema_power,
        foreach=True,
    )
    ema.to(device)
    return ema


def make_optimizer(args: argparse.Namespace, unet: UNet2DModel, max_train_steps: int):
    """AdamW, and the schedule of its learning rate, which is stepped once for each optimizer step."""
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
    return optimizer, lr_scheduler


def main(argv: list[str] | None = None) -> float:
    """Trains, and returns the mean loss of the last steps that were logged."""
    args = training.parse_args(argv)
    output_dir = Path(args.output_dir)
    accelerator = start_accelerator(args)
    set_seed(args.seed)

    # 1. everything that can be refused is looked at before anything is written
    checkpoint = training.find_checkpoint(output_dir, args.resume_from_checkpoint)
    inputs = {name: getattr(args, name) for name in ("train_data_dir", "model_config_name_or_path", "eval_weights")}
    resume = args.resume_from_checkpoint is not None
    training.check_output_dir(output_dir, inputs, overwrite=args.overwrite_output_dir, resume=resume)
    noise_scheduler = EtaDDIMScheduler(
        num_train_timesteps=args.ddpm_num_steps,
        beta_schedule=args.ddpm_beta_schedule,
        prediction_type=args.prediction_type,
        timestep_spacing=args.timestep_spacing,
        clip_sample=args.clip_sample,
        rescale_betas_zero_snr=args.rescale_betas_zero_snr,
    )
    dataset, held_out = load_datasets(args, accelerator)
    num_classes = None if dataset.class_names is None else len(dataset.class_names)
    global_batch_size = args.train_batch_size * accelerator.num_processes
    if len(dataset) < global_batch_size:
        raise ValueError(
            f"`train_batch_size` over all processes is {global_batch_size}, but there are {len(dataset)} images."
        )
    unet = load_unet(args, dataset.channels, num_classes, accelerator.device)
    accumulation, batches_per_epoch = args.gradient_accumulation_steps, len(dataset) // global_batch_size
    steps_per_epoch = math.ceil(batches_per_epoch / accumulation)
    max_train_steps = args.max_train_steps or args.num_epochs * steps_per_epoch
    settings = {name: value for name, value in vars(args).items() if name != "hub_token"}
    settings["class_names"] = dataset.class_names
    if checkpoint is not None:
        training.check_resumed_settings(checkpoint, settings, max_train_steps)
    distances = None
    if args.eval_every is not None and accelerator.is_main_process:
        distances = training.distances_to(
            dataset,
            args.eval_features,
            args.eval_weights,
            eval_num_images=args.eval_num_images,
            device=accelerator.device,
        )
    repo_id = None
    if args.push_to_hub and accelerator.is_main_process:
        name = args.hub_model_id or output_dir.resolve().name
        repo_id = training.create_hub_repo(name, args.hub_private_repo, args.hub_token)

    # 2. optimizer, EMA, schedules
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    unet.to(memory_format=memory_format)
    ema = make_ema(args, unet, accelerator.device) if args.use_ema else None
    if ema is not None:
        accelerator.register_for_checkpointing(ema)
    optimizer, lr_scheduler = make_optimizer(args, unet, max_train_steps)
    accelerator.register_for_checkpointing(lr_scheduler)
    dataloader = torch.utils.data.DataLoader(
        dataset,
        args.train_batch_size,
        drop_last=True,
        num_workers=args.dataloader_num_workers,
        worker_init_fn=training.ignore_signals,
        pin_memory=accelerator.device.type == "cuda",
    )
    model, optimizer, dataloader = accelerator.prepare(unet, optimizer, dataloader)  # `unet` is what `model` wraps
    weights = training.loss_weights(noise_scheduler, args.snr_gamma).to(accelerator.device)
    noise_scheduler.set_timesteps(args.ddpm_num_steps, device=accelerator.device)  # puts its table there
    global_step = 0 if checkpoint is None else training.load_checkpoint(accelerator, checkpoint)

    # 3. from here on files are written
    if accelerator.is_main_process:
        training.open_output_dir(output_dir, settings, args.overwrite_output_dir)
        training.trim_loss_log(output_dir, global_step)
    accelerator.wait_for_everyone()
    accelerator.init_trackers(
        "train",
        config={name: str(value) for name, value in settings.items()},
        init_kwargs={"tensorboard": {"purge_step": global_step + 1}},  # hides what a killed run logged after it
    )
    for line in training.describe_images(dataset, held_out):
        logger.info(line)
    logger.info(
        f"{sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M parameters, {accelerator.num_processes} x "
        f"{accelerator.device.type}, step {global_step} of {max_train_steps} ({steps_per_epoch} an epoch, "
        f"{args.lr_warmup_steps} of warm-up), {global_batch_size * accumulation} images a step"
    )

    def log(values: dict[str, float]):
        accelerator.log(values, step=global_step)
        if accelerator.is_main_process:
            training.append_to_loss_log(output_dir, global_step, values)

    def sample(num_images: int, class_labels) -> torch.Tensor:
        with training.trained_pipeline(unet, noise_scheduler, ema) as pipeline:
            return training.sample_images(
                accelerator,
                pipeline,
                num_images,
                class_labels,
                batch_size=args.eval_batch_size,
                num_inference_steps=args.ddpm_num_inference_steps,
                seed=args.seed,
            )

    def validation_losses(held_out: training.ImageDataset) -> dict[str, float]:
        with training.trained_pipeline(unet, noise_scheduler, ema):
            return training.validation_losses(
                accelerator, unet, noise_scheduler, held_out, weights, batch_size=args.eval_batch_size, seed=args.seed
            )

    preview_labels, eval_labels = None, None
    if num_classes is not None:
        preview_labels = range(num_classes)
        number = args.eval_num_images  # with classes as frequent as in the data
        eval_labels = [dataset.labels[k * len(dataset) // number] for k in range(number)]

    # 4. the loop
    is_quiet = not accelerator.is_main_process
    progress = tqdm(total=max_train_steps, initial=global_step, desc="Steps", mininterval=1.0, disable=is_quiet)
    recent_losses: list[tuple[torch.Tensor, torch.Tensor]] = []
    mean_loss = math.nan
    is_last = is_stopped = False
    batches = training.seeded_batches(dataloader, args.seed, global_step, steps_per_epoch, accumulation)
    clock = training.StepClock(max_train_steps - global_step)
    unet.train()
    with training.noted_signals() as signals:
        asked_to_stop = training.StopVote(accelerator, signals)
        while global_step < max_train_steps and not is_stopped:
            seed, (images, labels) = next(batches)
            noisy_images, timesteps, target, is_dropped = training.training_batch(
                images, noise_scheduler, seed, accelerator, args.noise_offset, args.label_dropout
            )
            torch.manual_seed(training.mixed((*seed, accelerator.process_index + 1)))  # of dropout
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
            if (spent := clock.tick()) is not None:
                logger.info(spent)
            is_stopped = asked_to_stop()
            is_last = global_step == max_train_steps
            checkpoint_is_due = global_step % args.checkpointing_steps == 0 or is_last or is_stopped
            if global_step % args.logging_steps == 0 or checkpoint_is_due:
                values = training.mean_losses(accelerator, recent_losses, args.ddpm_num_steps)
                values["lr"] = lr_scheduler.get_last_lr()[0]
                recent_losses.clear()
                mean_loss = values["loss"]
                if not math.isfinite(mean_loss):
                    raise ValueError(
                        f"The loss is {mean_loss} at step {global_step}, with `learning_rate` {args.learning_rate}. "
                        f"Checkpoints before it: {[str(path) for path in training.list_checkpoints(output_dir)]}"
                    )
                progress.set_postfix(loss=f"{mean_loss:.4f}", lr=f"{values['lr']:.1e}", refresh=False)
                log(values)
            try:
                if global_step % args.save_images_steps == 0 or is_last:
                    images = sample(args.eval_batch_size, preview_labels)
                    if accelerator.is_main_process:
                        training.save_preview(accelerator, output_dir, images, global_step)
                    if held_out is not None:
                        log(validation_losses(held_out))
                if args.eval_every is not None and (global_step % args.eval_every == 0 or is_last):
                    images = sample(args.eval_num_images, eval_labels)
                    if distances is not None:
                        log(distances(images))
            except Exception:
                if accelerator.num_processes == 1:  # what was trained is not lost; of several, some may wait elsewhere
                    training.save_checkpoint(accelerator, output_dir, global_step, args.checkpoints_total_limit)
                raise
            if checkpoint_is_due:
                training.save_checkpoint(accelerator, output_dir, global_step, args.checkpoints_total_limit)
    progress.close()
    if is_stopped and not is_last:
        accelerator.end_training()
        logger.info(f"Stopped at step {global_step}. Continue, with the same launcher, by: {training.resume_command()}")
        raise SystemExit(130)

    # 5. the pipeline
    if accelerator.is_main_process:
        with training.trained_pipeline(unet, noise_scheduler, ema) as pipeline:
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
    run(main)
