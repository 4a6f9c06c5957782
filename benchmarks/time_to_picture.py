# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Seconds for 64 pictures that are as near to the converged ones as those of diffusers' DDIMScheduler in 50 steps.

    python benchmarks/time_to_picture.py models/digits models/blue-marble

The pictures of a model without any error of the sampler are those of 100 steps of order 3. The built-in takes its best
spacing, ours the smallest number of fitted steps that comes as near (root mean square over the pixels, in [-1, 1]),
both from the same noise, of three seeds. Then they take turns at the pictures of one, ours also with what makes the
network itself faster: its layout in memory, compilation (not counted), and bfloat16 where the device has instructions
for it.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, UNet2DModel

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, image_generators
from ddim_scheduler.app.samplers import distance
from ddim_scheduler.command_line import add_device, run
from ddim_scheduler.fitting import teacher_of
from ddim_scheduler.training.processes import computes_bfloat16

from report import check, update, versions

NUM_IMAGES, SEEDS, BUILTIN_STEPS, TEACHER_STEPS, ROUNDS = 64, (0, 1, 2), 50, 100, 5


class Run:
    """A network and a scheduler, and what they took and gave."""

    def __init__(self, name: str, unet: UNet2DModel, scheduler: Any, steps: int):
        self.name, self.steps = name, steps
        self.pipeline = EtaDDIMPipeline(unet, EtaDDIMScheduler())
        self.pipeline.scheduler = scheduler
        self.pipeline.set_progress_bar_config(disable=True)
        self.seconds: list[float] = []

    def __call__(self, seed: int = SEEDS[0]) -> torch.Tensor:
        unet = self.pipeline.unet
        size, channels = unet.config.sample_size, unet.config.in_channels
        noise = torch.stack(
            [torch.randn(channels, size, size, generator=g) for g in image_generators(seed, range(NUM_IMAGES))]
        )
        start = time.perf_counter()
        made = self.pipeline(NUM_IMAGES, self.steps, latents=noise.to(unet.device), output_type="latent").images.cpu()
        self.seconds.append(time.perf_counter() - start)
        return made.float()

    def of_all_seeds(self) -> torch.Tensor:
        """The pictures that the distance is measured by."""
        return torch.cat([self(seed) for seed in SEEDS])


def compare(folder: Path, device: str) -> list[tuple[Run, float]]:
    """diffusers' run and ours, timed, each with its distance from the converged pictures."""
    loaded = EtaDDIMPipeline.from_pretrained(folder).to(device)
    unet, config = loaded.unet, loaded.scheduler.config
    counts = sorted(int(count) for count in config.fitted_tables or {})
    if not counts:
        raise ValueError(f"`models`: {folder} has no fitted samplers: python -m ddim_scheduler.fitting {folder}")

    converged = Run("", unet, teacher_of(loaded.scheduler), TEACHER_STEPS).of_all_seeds()
    candidates = []
    for spacing in ("leading", "linspace", "trailing"):
        scheduler = DDIMScheduler.from_config(config, timestep_spacing=spacing, clip_sample=False)
        theirs = Run(f"diffusers' DDIMScheduler, `{spacing}`", unet, scheduler, BUILTIN_STEPS)
        candidates.append((distance(theirs.of_all_seeds(), converged), theirs))
    aim, builtin = min(candidates, key=lambda candidate: candidate[0])
    fitted = EtaDDIMScheduler.from_config(config, timestep_spacing="fitted")
    distances_of = ((n, distance(Run("", unet, fitted, n).of_all_seeds(), converged)) for n in counts)
    steps = next((n for n, off in distances_of if off <= aim), None)
    if steps is None:
        raise ValueError(f"`models`: no fitted sampler of {folder}, {counts} steps, comes as near as {aim:.4f}.")

    networks = {
        "ours, fitted": unet,
        "ours, channels_last": copy.deepcopy(unet).to(memory_format=torch.channels_last),
        "ours, compiled": torch.compile(copy.deepcopy(unet)),
    }
    if computes_bfloat16(torch.device(device)):
        networks["ours, bfloat16"] = copy.deepcopy(unet).to(torch.bfloat16)
        networks["ours, bfloat16, compiled"] = torch.compile(copy.deepcopy(unet).to(torch.bfloat16))
    runs = [builtin, *(Run(name, network, fitted, steps) for name, network in networks.items())]
    distances = [distance(one.of_all_seeds(), converged) for one in runs]  # and compiles
    for one in runs:
        one.seconds.clear()
    for i in range(ROUNDS):  # every other one backwards, since what ran before has an effect
        for one in runs if i % 2 == 0 else reversed(runs):
            one()
    return list(zip(runs, distances, strict=True))


def main(argv: list[str] | None = None) -> dict[Path, list[tuple[Run, float]]]:
    """Prints a table for each model and returns what is in it."""
    parser = argparse.ArgumentParser(
        description="Time pictures as near to the converged ones as the built-in's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("models", type=Path, nargs="+", help="folders of EtaDDIMPipelines with fitted samplers")
    add_device(parser, "cpu or cuda", "cpu")
    parser.add_argument("--update", type=Path, help="document to put the tables into, between its markers")
    args = parser.parse_args(argv)
    for folder in args.models:
        if not folder.is_dir():
            parser.error(f"models: there is no folder {folder}")
    check(args.update, f"time-to-picture-{args.device}")
    diffusers.logging.set_verbosity_error()
    compared, tables = {}, []
    for folder in args.models:
        compared[folder] = compare(folder, args.device)
        base = statistics.median(compared[folder][0][0].seconds)
        lines = [
            f"`{folder}`, {NUM_IMAGES} pictures, distances by {len(SEEDS)} times as many; {versions(args.device)}; "
            f"medians of {ROUNDS} alternating rounds.\n",
            "| | calls | RMS from the converged pictures | seconds | times as fast |\n|---|---|---|---|---|",
        ]
        for one, off in compared[folder]:
            seconds = statistics.median(one.seconds)
            lines.append(f"| {one.name} | {one.steps} | {off:.4f} | {seconds:.2f} | {base / seconds:.1f} |")
        tables.append("\n".join(lines) + "\n")
        print(tables[-1], flush=True)
    update(args.update, f"time-to-picture-{args.device}", "\n".join(tables))
    return compared


if __name__ == "__main__":
    run(main)
