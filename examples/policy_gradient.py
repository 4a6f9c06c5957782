# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Fine-tunes a saved pipeline towards a reward by policy gradient, as DDPO does (https://arxiv.org/abs/2305.13301).

    python examples/policy_gradient.py outputs/digits --output_dir outputs/bright-digits

A step of the sampler is an action: `transition` of the scheduler, EtaDDIMScheduler or EtaFlowMatchScheduler, gives the
Gaussian it is drawn from, `log_prob` the log-density of what was drawn. The reward here is the mean brightness of the
image; replace `reward` by your own.
"""

import argparse
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ddim_scheduler import EtaDDIMPipeline
from ddim_scheduler.command_line import Parser, run
from ddim_scheduler.generation import check_makes_pictures, image_shape, picture_grid, use_order_1


def reward(images: torch.Tensor) -> torch.Tensor:
    """Mean brightness in [0, 1] of images (B, C, H, W) in [-1, 1]."""
    return (images.clamp(-1, 1) / 2 + 0.5).mean((1, 2, 3))


@torch.no_grad()
def rollout(pipeline: EtaDDIMPipeline, args: argparse.Namespace, generator: torch.Generator):
    """Samples images, and returns every (t, x_t, x_s, log-probability) on the way."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    shape = (args.batch_size, *image_shape(unet))
    sample = torch.randn(shape, generator=generator)
    trajectory = []
    for t in scheduler.timesteps:
        mean, std, _ = scheduler.transition(unet(sample, t).sample, t, sample, eta=args.eta)
        prev_sample = mean + std * torch.randn(shape, generator=generator)
        trajectory.append((t, sample, prev_sample, scheduler.log_prob(prev_sample, mean, std, reduction="mean")))
        sample = prev_sample
    return trajectory, sample


def main(argv: list[str] | None = None) -> list[float]:
    """Fine-tunes, and returns the mean reward of each round."""
    parser = Parser(
        description="Fine-tune a pipeline towards bright images by policy gradient.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("pipeline", help="folder or Hub id of an EtaDDIMPipeline")
    parser.add_argument("--output_dir", default="outputs/policy-gradient", help="folder for the result")
    parser.add_argument("--num_rounds", type=int, default=20, help="rounds of sampling and learning")
    parser.add_argument("--num_inference_steps", type=int, default=10, help="sampler steps")
    parser.add_argument("--eta", type=float, default=1.0, help="randomness of the steps, in (0, 1]")
    parser.add_argument("--batch_size", type=int, default=64, help="images per round")
    parser.add_argument("--learning_rate", type=float, default=2e-5, help="learning rate of AdamW")
    parser.add_argument("--clip_range", type=float, default=0.2, help="PPO's bound on the change of the probabilities")
    parser.add_argument("--seed", type=int, default=0, help="seed of all noise")
    args = parser.parse_args(argv)
    if args.batch_size < 2:
        parser.error(f"--batch_size must be at least 2, but is {args.batch_size}: images are compared with each other")
    for name in ("num_rounds", "num_inference_steps", "learning_rate", "clip_range"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} must be positive, but is {getattr(args, name)}")
    if not 0 < args.eta <= 1:
        parser.error(f"--eta must be in (0, 1], but is {args.eta}: without noise there is nothing to reinforce")

    Path(args.output_dir).mkdir(parents=True, exist_ok=True)

    pipeline = EtaDDIMPipeline.from_pretrained(args.pipeline)
    config = pipeline.unet.config
    if config.num_class_embeds is not None or pipeline.condition_channels or config.sample_size is None:
        parser.error(f"pipeline must have no classes or condition, and a `sample_size`: {args.pipeline}")
    check_makes_pictures(pipeline.unet, args.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    use_order_1(pipeline)  # a step is taken anew when its probability is compared
    unet, scheduler = pipeline.unet, pipeline.scheduler
    scheduler.set_timesteps(args.num_inference_steps)
    optimizer = torch.optim.AdamW(unet.parameters(), args.learning_rate)
    generator = torch.Generator().manual_seed(args.seed)

    start, rewards = time.perf_counter(), []
    for _ in (progress := tqdm(range(args.num_rounds))):
        trajectory, images = rollout(pipeline, args, generator)
        rewards.append(reward(images).mean().item())
        progress.set_postfix(reward=f"{rewards[-1]:.3f}")
        advantages = (reward(images) - reward(images).mean()) / (reward(images).std() + 1e-6)
        for t, sample, prev_sample, old_log_prob in trajectory:
            mean, std, _ = scheduler.transition(unet(sample, t).sample, t, sample, eta=args.eta)
            ratio = torch.exp(scheduler.log_prob(prev_sample, mean, std, reduction="mean") - old_log_prob)
            clipped = ratio.clamp(1 - args.clip_range, 1 + args.clip_range)
            loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()

    print(f"mean reward {rewards[0]:.3f} -> {rewards[-1]:.3f} in {time.perf_counter() - start:.0f} s")
    pipeline.save_pretrained(args.output_dir)
    images = pipeline(64, args.num_inference_steps, args.eta, seed=args.seed).images
    picture_grid(images, 8, 8).save(f"{args.output_dir}/grid.png")
    print(f"The pipeline and a picture are in {args.output_dir}")
    return rewards


if __name__ == "__main__":
    run(main)
