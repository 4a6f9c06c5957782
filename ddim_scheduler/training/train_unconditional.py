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
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from ddim_scheduler import EtaDDIMScheduler, training
from ddim_scheduler.command_line import run
from ddim_scheduler.fitting import fit_saved
from ddim_scheduler.image_files import WHITE_LEVEL

logger = get_logger(__name__, log_level="INFO")

EARLY_STEPS = (1, 10)  # are logged, however long it takes until the next ones that are


def load_datasets(
    args: argparse.Namespace, accelerator: Accelerator
) -> tuple[training.ImageDataset, training.ImageDataset | None]:
    """The images of the folder or data set that is asked for, and those that are held out, if any."""
    with accelerator.local_main_process_first():  # which fills the cache of `datasets`
        if args.train_data_dir is not None:
            found = training.find_folder_images(args.train_data_dir, args.class_conditional, args.condition_dir)
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
    if held_out is None:
        return dataset, None
    white_level = args.white_level or WHITE_LEVEL  # a few may be dark
    settings |= {"channels": dataset.channels, "condition_channels": dataset.condition_channels or None}
    return dataset, training.ImageDataset(*held_out, center_crop=True, white_level=white_level, **settings)


def load_unet(
    args: argparse.Namespace, dataset: training.ImageDataset, noise_scheduler: EtaDDIMScheduler, device: torch.device
) -> UNet2DModel:
    """The UNet, with random weights or those to start from."""
    num_classes = None if dataset.class_names is None else len(dataset.class_names)
    images = (args.resolution, dataset.channels, num_classes)
    more: dict[str, Any] = {"condition_channels": dataset.condition_channels}
    if args.pretrained_model_name_or_path is not None:
        name = args.pretrained_model_name_or_path
        unet = training.pretrained_unet(name, *images, noise_scheduler=noise_scheduler, device=device, **more)
    elif args.model_config_name_or_path is not None:
        name, num_train_timesteps = args.model_config_name_or_path, args.ddpm_num_steps
        unet = training.unet_from_config(name, *images, num_train_timesteps=num_train_timesteps, device=device, **more)
    else:
        unet = training.build_unet(
            *images,
            block_out_channels=args.block_out_channels,
            layers_per_block=args.layers_per_block,
            attention_resolutions=args.attention_resolutions,
            **more,
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
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=training.warmup_steps(args.lr_warmup_steps, max_train_steps),
        num_training_steps=max_train_steps,
    )
    return optimizer, lr_scheduler


def main(argv: list[str] | None = None) -> float:
    """Trains, and returns the mean loss of the last steps that were logged."""
    args = training.parse_args(argv)
    output_dir = Path(args.output_dir)
    accelerator = training.start_accelerator(args)
    set_seed(args.seed)

    # 1. everything that can be refused is looked at before anything is written
    if args.pretrained_model_name_or_path is None and args.model_config_name_or_path is None:
        training.check_levels(args.resolution, args.block_out_channels, args.attention_resolutions)
    models = ("pretrained_model_name_or_path", "model_config_name_or_path")
    inputs = {name: getattr(args, name) for name in ("train_data_dir", "condition_dir", *models, "eval_weights")}
    overwrite, resume = args.overwrite_output_dir, args.resume_from_checkpoint is not None
    found = training.check_output_dir(output_dir, inputs, overwrite=overwrite, resume=resume)
    checkpoint = training.find_checkpoint(output_dir, args.resume_from_checkpoint)
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
    batch_size = args.train_batch_size * accelerator.num_processes
    batches_per_epoch, accumulation = training.count_batches(len(dataset), batch_size, args.gradient_accumulation_steps)
    accelerator.gradient_accumulation_steps = accumulation
    steps_per_epoch = math.ceil(batches_per_epoch / accumulation)
    max_train_steps = args.max_train_steps or args.num_epochs * steps_per_epoch
    unet = load_unet(args, dataset, noise_scheduler, accelerator.device)
    settings = {name: value for name, value in vars(args).items() if name != "hub_token"}
    settings |= {name: getattr(dataset, name) for name in ("channels", "condition_channels", "class_names")}
    settings |= {"num_images": len(dataset), "num_processes": accelerator.num_processes}
    changes = {}
    if checkpoint is not None:
        changes = training.check_resumed_settings(checkpoint, settings, max_train_steps)
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
    dataloader = training.make_dataloader(
        dataset, args.train_batch_size, args.dataloader_num_workers, accelerator.device
    )
    model, optimizer, dataloader = accelerator.prepare(unet, optimizer, dataloader)  # `unet` is what `model` wraps
    weights = training.loss_weights(noise_scheduler, args.snr_gamma).to(accelerator.device)
    noise_scheduler.set_timesteps(args.ddpm_num_steps, device=accelerator.device)  # puts its table there
    global_step = 0
    if checkpoint is not None:
        global_step = training.load_checkpoint(accelerator, checkpoint)
        training.follow_schedule(lr_scheduler, args.learning_rate)

    # 3. from here on files are written
    if accelerator.is_main_process:
        training.open_output_dir(output_dir, settings, found, overwrite)
        training.trim_loss_log(output_dir, global_step)
        training.record_changes(output_dir, global_step, changes)
    accelerator.wait_for_everyone()
    training.start_trackers(accelerator, output_dir, settings, global_step)
    for name, (old, new) in changes.items():
        logger.info(f"Changed since step {global_step}: `{name}` {old!r} -> {new!r}")
    for line in training.describe_images(dataset, held_out):
        logger.info(line)
    num_warmup_steps = training.warmup_steps(args.lr_warmup_steps, max_train_steps)
    logger.info(
        f"{training.describe_unet(unet)}, {accelerator.num_processes} x {accelerator.device.type}, step {global_step} "
        f"of {max_train_steps} ({steps_per_epoch} an epoch, {num_warmup_steps} of warm-up), "
        f"{batch_size * accumulation} images a step"
    )

    progress = training.Progress(max_train_steps, global_step, not accelerator.is_main_process)

    def log(values: dict[str, float]):
        training.log_values(accelerator, values, global_step)
        if accelerator.is_main_process:
            training.append_to_loss_log(output_dir, global_step, values)

    def sample(num_images: int, class_labels, conditions: torch.Tensor | None) -> torch.Tensor:
        calls = math.ceil(num_images / args.eval_batch_size) * args.ddpm_num_inference_steps
        with (
            training.trained_pipeline(unet, noise_scheduler, ema) as pipeline,
            progress.part(f"Sampling {num_images} images", calls) as bar,
        ):
            return training.sample_images(
                accelerator,
                pipeline,
                num_images,
                class_labels,
                batch_size=args.eval_batch_size,
                num_inference_steps=args.ddpm_num_inference_steps,
                seed=args.seed,
                conditions=conditions,
                on_step=bar.update,
            )

    def validation_losses(held_out: training.ImageDataset) -> dict[str, float]:
        with training.trained_pipeline(unet, noise_scheduler, ema):
            return training.validation_losses(
                accelerator, unet, noise_scheduler, held_out, weights, batch_size=args.eval_batch_size, seed=args.seed
            )

    def save():  # the pipeline first: wherever there is a checkpoint, there is a model to sample
        training.check_weights(unet, args.learning_rate, output_dir, global_step)
        if accelerator.is_main_process:
            with training.trained_pipeline(unet, noise_scheduler, ema) as pipeline:
                training.write_pipeline(pipeline, output_dir)
        training.save_checkpoint(accelerator, output_dir, global_step, args.checkpoints_total_limit)

    preview_labels = None if num_classes is None else range(num_classes)
    eval_labels = None if num_classes is None else dataset.frequent_labels(args.eval_num_images)
    conditions = training.conditions_of(held_out or dataset, max(args.eval_batch_size, args.eval_num_images))

    # 4. the loop
    recent_losses: list[tuple[torch.Tensor, torch.Tensor]] = []
    mean_loss, is_last, is_stopped = math.nan, False, False
    batches = training.seeded_batches(dataloader, args.seed, global_step, steps_per_epoch, accumulation)
    unet.train()
    with training.noted_signals(not accelerator.is_main_process) as signals:
        asked_to_stop = training.StopVote(accelerator, signals)
        while global_step < max_train_steps and not is_stopped:
            seed, (images, labels, *condition) = next(batches)
            noisy_images, timesteps, target, is_dropped = training.training_batch(
                images, noise_scheduler, seed, accelerator, args.noise_offset, args.label_dropout
            )
            torch.manual_seed(training.mixed((*seed, accelerator.process_index + 1)))  # of dropout
            model_input = training.with_condition(noisy_images, condition, is_dropped)
            class_labels = None if num_classes is None else labels.masked_fill(is_dropped, num_classes)
            group = min(accumulation, batches_per_epoch - seed[-1] // accumulation * accumulation)  # less at the end
            with accelerator.accumulate(model):
                prediction = model(model_input.to(memory_format=memory_format), timesteps, class_labels).sample
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
            is_stopped = asked_to_stop()
            is_last = global_step == max_train_steps
            checkpoint_is_due = global_step % args.checkpointing_steps == 0 or is_last or is_stopped
            if global_step in EARLY_STEPS or global_step % args.logging_steps == 0 or checkpoint_is_due:
                values = training.mean_losses(accelerator, recent_losses, args.ddpm_num_steps)
                values["lr"] = lr_scheduler.get_last_lr()[0]
                recent_losses.clear()
                mean_loss = values["loss"]
                training.check_loss(mean_loss, args.learning_rate, output_dir, global_step)
                progress.show(mean_loss, values["lr"])
                log(values)
            try:
                if global_step % args.save_images_steps == 0 or is_last:
                    images = sample(args.eval_batch_size, preview_labels, conditions)
                    if accelerator.is_main_process:
                        training.save_preview(accelerator, output_dir, images, global_step)
                    if held_out is not None:
                        log(validation_losses(held_out))
                if args.eval_every is not None and (global_step % args.eval_every == 0 or is_last):
                    images = sample(args.eval_num_images, eval_labels, conditions)
                    if distances is not None:
                        log(distances(images))
            except Exception:
                if accelerator.num_processes == 1:  # what was trained is not lost; of several, some may wait elsewhere
                    save()
                raise
            if checkpoint_is_due:
                save()
    progress.bar.close()
    if is_stopped and not is_last:
        training.end_training(accelerator)
        logger.info(f"Stopped at step {global_step}. Continue by: {training.resume_command()}")
        raise SystemExit(130)

    # 5. the pipeline
    if accelerator.is_main_process:
        with training.trained_pipeline(unet, noise_scheduler, ema) as pipeline:
            training.write_pipeline(pipeline, output_dir)  # whatever becomes of the upload
            loss = f"; loss of the last steps {mean_loss:.4f}" * math.isfinite(mean_loss)  # nan: there were none
            logger.info(f"The pipeline is in {output_dir}{loss}.")
            if args.fit_steps is not None:
                pipeline.scheduler = fit_saved(pipeline, args.fit_steps, conditions=conditions)
                training.write_pipeline(pipeline, output_dir)
            if repo_id is not None:
                private = True if args.hub_private_repo else None
                pipeline.save_pretrained(
                    output_dir, push_to_hub=True, repo_id=repo_id, private=private, token=args.hub_token
                )
    accelerator.wait_for_everyone()
    training.end_training(accelerator)
    return mean_loss


if __name__ == "__main__":
    run(main)
