# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Makes the paper's Table 1 with a saved pipeline, and compares diffusers' DDIMScheduler with ours on the same weights and
seeds. The images are kept in the work folder, so that a run that was stopped goes on where it was.

    python benchmarks/table1.py models/digits --reference data/digits/train --held_out data/digits/test \\
        --features digits --weights outputs/digits-classifier.safetensors
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from accelerate import PartialState
from matplotlib.figure import Figure

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
from ddim_scheduler.command_line import add_device, run
from ddim_scheduler.evaluation import (
    FEATURES,
    Scores,
    extract_features,
    load_images,
    load_network,
    scores,
    shuffled,
)
from ddim_scheduler.generation import generate_images, use_order_1, use_scheduler
from ddim_scheduler.image_folders import find_images

from report import check, update

# eta, and what the scheduler's config has. The official code clips x_0 for sigma-hat alone; the last row is not the
# paper's.
ROWS: dict[str, tuple[float, dict[str, Any]]] = {
    "0": (0.0, {"clip_sample": False}),
    "0.2": (0.2, {"clip_sample": False}),
    "0.5": (0.5, {"clip_sample": False}),
    "1": (1.0, {"clip_sample": False}),
    "sigma-hat": (1.0, {"clip_sample": True, "variance_type": "sigma_hat"}),
    "0-clipped": (0.0, {"clip_sample": True}),
}
SCHEDULERS = {"EtaDDIMScheduler": EtaDDIMScheduler, "DDIMScheduler": diffusers.DDIMScheduler}
MANY_STEPS = 1000
# where the built-in steps to wrong noise levels for these numbers of steps, and `leading`, where it does not
COMPARED = (("linspace", (10, 15, 20, 30)), ("trailing", (15, 30)), ("leading", (10, 20)))
TIMED_IMAGES = 16


def of_order_1(path: str) -> EtaDDIMPipeline:
    """The pipeline with a scheduler that takes every number of steps."""
    pipeline = EtaDDIMPipeline.from_pretrained(path)
    use_order_1(pipeline)
    return pipeline


class Cell(NamedTuple):
    """One set of images."""

    scheduler: str
    spacing: str | None
    row: str  # key of ROWS
    steps: int

    def __str__(self) -> str:
        name = f"{self.scheduler.removesuffix('Scheduler')}-{self.spacing or 'own'}-{self.row}-{self.steps}"
        return name.lower()

    def generate(self, folder: Path, args: argparse.Namespace):
        """Makes the images that the folder lacks."""
        eta, changes = ROWS[self.row]
        spacing = {} if self.spacing is None else {"timestep_spacing": self.spacing}
        pipeline = of_order_1(args.pipeline)
        use_scheduler(pipeline, SCHEDULERS[self.scheduler], **changes, **spacing)
        generate_images(
            pipeline,
            folder,
            args.num_images,
            name=args.pipeline,
            batch_size=args.batch_size,
            num_inference_steps=self.steps,
            eta=eta,
            seed=args.seed,
            state=PartialState(cpu=args.device == "cpu"),
        )


def table1_cells(steps: list[int], rows_of_many_steps: list[str]) -> list[Cell]:
    return [
        Cell("EtaDDIMScheduler", None, row, n)
        for row in ROWS
        for n in [*steps, MANY_STEPS]
        if n != MANY_STEPS or row in rows_of_many_steps
    ]


def compared_cells() -> list[Cell]:
    cells = [
        Cell(scheduler, spacing, "0", n)
        for spacing, counts in COMPARED
        for n in counts
        for scheduler in ("DDIMScheduler", "EtaDDIMScheduler")
    ]
    return cells + [Cell("EtaDDIMScheduler", "quadratic", "0", n) for n in sorted({c.steps for c in cells})]


def measure_times(args: argparse.Namespace) -> dict[int, float]:
    """Milliseconds for each image, by the number of steps; 1000 steps are measured as well."""
    pipeline = of_order_1(args.pipeline).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    milliseconds = {}
    for steps in [1, *args.steps, MANY_STEPS]:  # the first one warms up
        start = time.perf_counter()
        pipeline(TIMED_IMAGES, steps, seed=0)
        milliseconds[steps] = 1000 * (time.perf_counter() - start) / TIMED_IMAGES
    del milliseconds[1]
    return milliseconds


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Generates and evaluates every cell. The result can be written as JSON."""
    network = load_network(args.features, args.weights, args.device)
    if args.num_images <= network.num_features:
        raise ValueError(
            f"`num_images` must be more than {network.num_features}, the features, but is {args.num_images}."
        )
    results: dict[str, Any] = {
        "pipeline": args.pipeline,
        "num_images": args.num_images,
        "seed": args.seed,
        "features": f"{args.features}, {network.num_features}",
        "steps": args.steps,
        "cells": {},
    }
    reference_features = None
    cells = [*table1_cells(args.steps, args.rows_of_many_steps), *compared_cells()]
    for i, cell in enumerate(dict.fromkeys(cells)):
        print(f"{i + 1} of {len(set(cells))}: {cell}", flush=True)
        folder = args.work_dir / str(cell)
        cell.generate(folder, args)
        images = load_images(folder)
        if reference_features is None:
            reference = load_images(args.reference, like=images)
            held_out = shuffled(load_images(args.held_out, like=images))[: args.num_images]
            if min(len(reference), len(held_out)) <= network.num_features:
                raise ValueError(
                    f"`reference` and `held_out` must hold more than {network.num_features} images, but hold "
                    f"{len(reference)} and {len(held_out)}."
                )
            reference_features = extract_features(reference, network)
            results["reference"] = len(reference)
            results["floor"] = scores(extract_features(held_out, network), reference_features)._asdict()
        results["cells"][str(cell)] = scores(extract_features(images, network), reference_features)._asdict()
    results["milliseconds"] = measure_times(args)
    results["device"] = (
        torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, threads: {torch.get_num_threads()}"
    )
    results["versions"] = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    return results


# ------------------------------------------------------------------------------------------------------------- reports


def frechet(results: dict[str, Any], cell: Cell) -> float | None:
    found = results["cells"].get(str(cell))
    return None if found is None else found["frechet"]


def claims(results: dict[str, Any]) -> dict[str, bool]:
    """What the paper says of its Table 1, and whether it shows here."""
    floor = results["floor"]["frechet"]

    def distance(row: str, steps: int) -> float:
        value = frechet(results, Cell("EtaDDIMScheduler", None, row, steps))
        assert value is not None
        return value

    milliseconds = {int(steps): value for steps, value in results["milliseconds"].items()}
    distances = [distance("0", steps) for steps in sorted([*results["steps"], MANY_STEPS])]
    found = {"η = 0: the distance falls with the number of steps": distances == sorted(distances, reverse=True)}
    for steps in (20, 50):
        text = f"η = 0: {steps} steps within 10 % and the floor of {MANY_STEPS} steps"
        found[text] = distance("0", steps) <= 1.1 * distance("0", MANY_STEPS) + floor
    for steps in (10, 20):
        distances = [distance(row, steps) for row in ("0", "0.2", "0.5", "1")]
        found[f"{steps} steps: the distance grows with η"] = distances == sorted(distances)
        found[f"{steps} steps: η = 1 is farther than η = 0"] = distances[-1] > distances[0]
    found["10 steps: sigma-hat is at least twice as far as η = 1"] = distance("sigma-hat", 10) > 2 * distance("1", 10)
    for steps in (20, 50):
        ratio = milliseconds[MANY_STEPS] / milliseconds[steps]
        found[f"time: {steps} steps are {MANY_STEPS / steps:.0f} times as fast, within 20 %"] = (
            abs(ratio * steps / MANY_STEPS - 1) < 0.2
        )
    return found


def report(results: dict[str, Any]) -> str:
    """The tables and the claims as text."""
    counts = [*results["steps"], MANY_STEPS]
    floor = Scores(**results["floor"])
    remark = "" if floor.num_images == results["num_images"] else "; too high, being of fewer images"
    lines = [
        f"`{results['pipeline']}`, {results['num_images']} images for each cell with seed {results['seed']}, against "
        f"{results['reference']} real ones; features: {results['features']}; {results['versions']}. Floor, "
        f"{floor.num_images} real images that are not in the reference: {floor.frechet:.3f}, coverage "
        f"{floor.coverage:.2f}{remark}.",
        "",
        "Fréchet distance (coverage). x_0 is clipped for sigma-hat, as by the official code, and where a row says so:",
        "",
        "| η | " + " | ".join(f"S = {n}" for n in counts) + " |",
        "|---|" + "---|" * len(counts),
    ]
    for row in ROWS:
        cells = [results["cells"].get(str(Cell("EtaDDIMScheduler", None, row, n))) for n in counts]
        texts = ["-" if c is None else f"{c['frechet']:.3f} ({c['coverage']:.2f})" for c in cells]
        lines.append(f"| {row} | {' | '.join(texts)} |")
    times = [results["milliseconds"][str(n)] for n in counts]
    lines.append(f"| ms an image, {results['device']} | {' | '.join(f'{t:.0f}' for t in times)} |")
    lines += ["", "| claim of the paper | here |", "|---|---|"]
    lines += [f"| {text} | {'yes' if holds else 'no'} |" for text, holds in claims(results).items()]
    lines += [
        "",
        "The same weights and seeds, η = 0, Fréchet distance:",
        "",
        "| τ | S | diffusers | ours | ours, `quadratic` |",
    ]
    lines.append("|---|---|---|---|---|")
    for spacing, counts in COMPARED:
        for n in counts:
            pair = [Cell("DDIMScheduler", spacing, "0", n), Cell("EtaDDIMScheduler", spacing, "0", n)]
            values = [frechet(results, cell) for cell in (*pair, Cell("EtaDDIMScheduler", "quadratic", "0", n))]
            lines.append(f"| `{spacing}` | {n} | {' | '.join(f'{v:.3f}' for v in values)} |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], path: Path):
    """Fréchet distance against steps and against time."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    milliseconds = {int(n): value for n, value in results["milliseconds"].items()}
    for row in ROWS:
        points = [
            (n, frechet(results, Cell("EtaDDIMScheduler", None, row, n))) for n in [*results["steps"], MANY_STEPS]
        ]
        points = [(n, value) for n, value in points if value is not None]
        counts, values = zip(*points, strict=True)
        label = row if row == "sigma-hat" else f"η = {row}"
        panels[0].plot(counts, values, marker=".", label=label)
        panels[1].plot([milliseconds[n] for n in counts], values, marker=".", label=label)
    for axes, unit in zip(panels, ("steps", f"ms an image, {results['device']}"), strict=True):
        axes.axhline(results["floor"]["frechet"], color="gray", linewidth=0.8, label="floor")
        axes.set(xlabel=unit, xscale="log", yscale="log")
    panels[0].set_ylabel("Fréchet distance")
    panels[1].legend(fontsize="small")
    figure.savefig(path, dpi=90)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Prints the report and returns the figures in it."""
    parser = argparse.ArgumentParser(
        description="Make the paper's Table 1 with a saved pipeline.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("pipeline", help="folder or Hub id of a pipeline")
    parser.add_argument("--reference", type=Path, required=True, help="folder of real images")
    parser.add_argument("--held_out", type=Path, required=True, help="folder of other real images, for the floor")
    parser.add_argument("--features", choices=FEATURES, default="inception", help="what the images are compared by")
    parser.add_argument("--weights", type=Path, help="file of the feature network's weights")
    parser.add_argument("--num_images", type=int, default=5000, help="images for each cell")
    parser.add_argument("--batch_size", type=int, default=64, help="images per model call")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 100], help="columns before the last one")
    parser.add_argument(
        "--rows_of_many_steps", nargs="+", default=list(ROWS), choices=ROWS, help="rows that have 1000 steps as well"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the images")
    add_device(parser, "cpu or cuda")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/table1"), help="folder of the images")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("--update", type=Path, nargs="*", default=[], help="documents to put the report into")
    args = parser.parse_args(argv)
    if not {10, 20, 50} <= set(args.steps) or "0" not in args.rows_of_many_steps:
        parser.error("--steps must hold 10, 20 and 50, and --rows_of_many_steps 0: the claims are about them")
    if not all(1 < steps < MANY_STEPS for steps in args.steps):
        parser.error(f"--steps must be between 1 and {MANY_STEPS}, but are {args.steps}")
    for name in ("reference", "held_out", "weights"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            parser.error(f"--{name} is not there: {path}")
        if path is not None and path.is_dir() and not find_images(path).items:
            parser.error(f"--{name} holds no images: {path}")
    for path in args.update:
        check(path, f"table1-{args.device}")
    for path in filter(None, (args.json, args.plot)):
        if path.is_dir():
            parser.error(f"--json and --plot must be files, but this is a folder: {path}")
        path.parent.mkdir(parents=True, exist_ok=True)

    results = json.loads(json.dumps(measure(args)))
    text = report(results)
    print(text, end="")
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if args.plot is not None:
        plot(results, args.plot)
    for path in args.update:
        update(path, f"table1-{args.device}", text)
    return results


if __name__ == "__main__":
    run(main)
