# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Samplers of few steps of a trained model: those that it carries, DDIM, and the multistep samplers of diffusers. A trial
with few images says which of these, in which setting, are the best for each number of calls: two by the RMS of all its
samples, on which one that ends elsewhere weighs much, and two by the median of a sample. These are compared.

    python benchmarks/few_steps_models.py models/digits data/digits --features digits \\
        --weights outputs/digits-classifier.safetensors

`make data/digits` makes the images, `examples/train_classifier.py` the weights. `few_steps_classes.py` does the same
with a class-conditional model.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddim_scheduler import EtaDDIMPipeline
from ddim_scheduler.command_line import run
from ddim_scheduler.evaluation import (
    FEATURES,
    FeatureNetwork,
    Scores,
    extract_features,
    load_images,
    load_network,
    scores,
    shuffled,
)
from ddim_scheduler.generation import image_shape

from few_steps import (
    SEEDS,
    Results,
    Sampler,
    Track,
    best,
    measure,
    ours,
    quiet,
    sample,
    set_calls,
    table,
    their_names,
    their_samplers,
)
from report import check, update, versions

COUNTS = (3, 5, 8, 10, 15, 20, 30, 50)
CONVERGED_STEPS = 200
TRIAL_SEED, TRIAL_IMAGES = 99, 8
PICTURE_SEED, BATCH_SIZE = 200, 64
DDIM = "DDIM `trailing`"


def track_of(pipe: EtaDDIMPipeline, classes: Sequence[int] | None = None, guidance: float = 1.0) -> Track:
    """The pipeline's model, with classes by turns."""
    config, shape, dtype = pipe.scheduler.config, image_shape(pipe.unet), pipe.unet.dtype

    def output(x: torch.Tensor, alpha: float, sigma: float, t: Any) -> torch.Tensor:
        labels = None if classes is None else torch.tensor([classes[k % len(classes)] for k in range(len(x))])
        return pipe._predict(x, t, t, labels, None, guidance, dtype)

    def noise(number: int, seed: int) -> torch.Tensor:
        return torch.randn(number, *shape, generator=torch.Generator().manual_seed(seed))

    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    return Track(output, {key: config[key] for key in keys}, noise)


def compare(track: Track, scheduler: Any, counts: Sequence[int], num_images: int) -> tuple[Results, Results]:
    """
    The trial of diffusers' samplers, and the comparison of the fitted one and DDIM with those of them, and settings,
    that were the best two for each number of calls, by RMS and by median.
    """
    theirs = [*their_samplers(track)]
    trial = measure(track, itertools.product(theirs, counts), TRIAL_IMAGES, (TRIAL_SEED,), CONVERGED_STEPS)
    chosen = set()
    for N, column in itertools.product(counts, (0, 1)):
        ranks = sorted((distances[column][0], *key) for key, distances in trial.items() if key[-1] == N)
        chosen |= {(name, setting, N) for _, name, setting, _ in ranks[:2]}
    fitted, ddim = ours_of(track, scheduler)
    cells = [(s, N) for N in counts for s in (fitted, ddim, *theirs) if s in (fitted, ddim) or (*s[:2], N) in chosen]
    return trial, measure(track, cells, num_images, SEEDS, CONVERGED_STEPS)


def ours_of(track: Track, scheduler: Any) -> tuple[Sampler, Sampler]:
    """The fitted scheduler, and order 1, which at these numbers of steps is DDIM."""
    return Sampler("fitted", "", lambda: scheduler), Sampler(DDIM, "", lambda: ours(track, timestep_spacing="trailing"))


def comparison(results: Results, counts: Sequence[int], column: int) -> str:
    """One row for each of the two of ours, the best of diffusers', and how far the fitted one is in parts of that."""
    lines = [f"| | {' | '.join(f'{N} calls' for N in counts)} |", "|---|" + "---|" * len(counts)]
    rivals = [best(results, [n for n in their_names(results) if n != DDIM], N, column) for N in counts]
    for name in ("fitted", DDIM):
        cells = (f"{best(results, [name], N, column)[0]:.3f}" for N in counts)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("| best of diffusers' | " + " | ".join(f"{d:.3f} {n} `{s}`" for d, n, s in rivals) + " |")
    ratios = (best(results, ["fitted"], N, column)[0] / d for N, (d, *_) in zip(counts, rivals, strict=True))
    lines.append("| fitted / best of diffusers' | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return "\n".join(lines) + "\n"


def report(title: str, trial: Results, results: Results, counts: Sequence[int], num_images: int) -> list[str]:
    return [
        f"{title}, {num_images} samples, {len(SEEDS)} seeds that were not fitted to: RMS distance from the converged "
        f"end, that of {CONVERGED_STEPS} steps of order 3.\n",
        comparison(results, counts, 0),
        "The same, median distance of a sample:\n",
        comparison(results, counts, 1),
        f"The trial, RMS of {TRIAL_IMAGES} samples of another seed:\n",
        table(trial, counts, 0),
    ]


def images_of(track: Track, sampler: Sampler, N: int, num_images: int) -> torch.Tensor:
    """Images of N calls, uint8, from the noise that all samplers start with."""
    parts = []
    for noise in track.noise(num_images, PICTURE_SEED).split(BATCH_SIZE):
        scheduler = sampler.make()
        set_calls(scheduler, N)
        parts.append(sample(scheduler, track, noise))
    return ((torch.cat(parts) + 1) * 127.5).clamp(0, 255).round().byte()


def compared(
    track: Track, scheduler: Any, num_images: int, data_dir: Path, network: FeatureNetwork
) -> dict[str, Scores]:
    """Of the fitted sampler, of DDIM, and of real images that are not in the reference, scaled as for training."""
    fitted, ddim = ours_of(track, scheduler)
    images = {f"fitted, {N} calls": images_of(track, fitted, N, num_images) for N in (5, 10)}
    images |= {f"{DDIM}, {N} calls": images_of(track, ddim, N, num_images) for N in (10, 50)}
    train, test = (load_images(data_dir / part, like=images[f"{DDIM}, 50 calls"]) for part in ("train", "test"))
    images["other real images"] = shuffled(test)[:num_images]
    reference = extract_features(train, network)
    return {title: scores(extract_features(some, network), reference) for title, some in images.items()}


def figures(row: Scores) -> str:
    frechet = "-" if row.frechet is None else f"{row.frechet:.3f}"
    kernel = f"{1000 * row.kernel:.1f} ± {1000 * row.kernel_std:.1f}"
    return f"{frechet} | {kernel} | {row.precision:.2f} | {row.coverage:.2f}"


@torch.no_grad()
def main(argv: list[str] | None = None) -> Results:
    """Prints the tables, and returns the figures of the comparison."""
    parser = argparse.ArgumentParser(
        description="Samplers of few steps of a trained model, ours and those of diffusers, from the same noise.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="folder of an EtaDDIMPipeline with fitted samplers")
    parser.add_argument("data_dir", type=Path, help="folder of the real images, with train/ and test/")
    parser.add_argument("--features", choices=FEATURES, default="efficientnet", help="what images are compared by")
    parser.add_argument("--weights", type=Path, help="file of the feature network's weights")
    parser.add_argument("--num_images", type=int, default=32, help="samples for each cell and seed")
    parser.add_argument("--num_compared", type=int, default=320, help="images that are compared with the real ones")
    parser.add_argument("--update", type=Path, help="document to put the tables into, between its markers")
    args = parser.parse_args(argv)
    for name, least in (("num_images", 1), ("num_compared", 4)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, but is {getattr(args, name)}")
    for folder in (args.model, args.data_dir / "train", args.data_dir / "test"):
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
    marker = f"few-steps-{args.model.name}"
    check(args.update, marker)
    network = load_network(args.features, args.weights)
    quiet()

    pipe = EtaDDIMPipeline.from_pretrained(args.model)
    missing = {*map(str, COUNTS)} - {*(pipe.scheduler.config.fitted_tables or {})}
    if missing or pipe.scheduler.config.timestep_spacing != "fitted":
        steps = " ".join(map(str, COUNTS))
        command = f"python -m ddim_scheduler.fitting {args.model} --steps {steps}"
        parser.error(f"model must have samplers fitted for {steps} steps: {command}")
    track = track_of(pipe)
    trial, results = compare(track, pipe.scheduler, COUNTS, args.num_images)
    parts = [f"{versions('cpu')}.\n", *report(f"`{args.model.name}`", trial, results, COUNTS, args.num_images)]
    print("\n".join(parts), flush=True)

    rows = compared(track, pipe.scheduler, args.num_compared, args.data_dir, network)
    parts += [
        f"{args.num_compared} images of `{args.model.name}` against the training images, in the {network.num_features} "
        f"features of {args.features}:\n\n| | Fréchet | kernel x 1000 | precision | coverage |\n|---|---|---|---|---|",
        *(f"| {title} | {figures(row)} |" for title, row in rows.items()),
    ]
    text = "\n".join(parts) + "\n"
    print(text, flush=True)
    update(args.update, marker, text)
    return results


if __name__ == "__main__":
    run(main)
