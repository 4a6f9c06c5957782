# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Samplers of few steps of a class-conditional model: trained here by the training command, fitted to five classes with
and without guidance, and tried on the others from other noise, as in `few_steps_models.py`.

    python benchmarks/few_steps_classes.py data/digits

The trained model is kept in --work_dir; a second run takes it.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

from ddim_scheduler import EtaDDIMPipeline
from ddim_scheduler.command_line import run
from ddim_scheduler.fitting import fit_sampler

from few_steps import Results, quiet
from few_steps_models import compare, report, track_of
from report import check, update, versions

TRAINING = (
    "--class_conditional --resolution 16 --block_out_channels 32 48 64 --layers_per_block 1 --attention_resolutions "
    "--train_batch_size 32 --max_train_steps 1500 --learning_rate 2e-3 --logger none --resume_from_checkpoint latest"
)
COUNTS = (5, 10, 20)
FITTED_CLASSES, OTHER_CLASSES, GUIDANCE, TRAJECTORIES = range(5), range(5, 10), (1.0, 3.0), 20


def trained(data_dir: Path, folder: Path) -> EtaDDIMPipeline:
    """A model of digits with classes, trained as far as it is not yet."""
    places = ["--train_data_dir", str(data_dir / "train"), "--output_dir", str(folder)]
    command = [sys.executable, "-m", "ddim_scheduler.training", *shlex.split(TRAINING), *places]
    if subprocess.run(command).returncode:
        raise SystemExit("error: the training failed, see above")
    return EtaDDIMPipeline.from_pretrained(folder)


@torch.no_grad()
def main(argv: list[str] | None = None) -> dict[float, Results]:
    """Prints the tables, and returns the figures of the comparisons by guidance."""
    parser = argparse.ArgumentParser(
        description="Samplers of few steps of a class-conditional model, with and without guidance.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("data_dir", type=Path, help="folder of digits, with train/")
    parser.add_argument("--num_images", type=int, default=30, help="samples for each cell and seed")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/digits-classes"), help="folder of the model")
    parser.add_argument("--update", type=Path, help="document to put the tables into, between its markers")
    args = parser.parse_args(argv)
    check(args.update, "few-steps-classes")
    quiet()

    pipe = trained(args.data_dir, args.work_dir)
    found, parts = {}, [f"{versions('cpu')}.\n"]
    for guidance in GUIDANCE:
        start = time.perf_counter()
        scheduler = fit_sampler(
            pipe, COUNTS, seeds=TRAJECTORIES, class_labels=[*FITTED_CLASSES], guidance_scale=guidance
        )
        seconds = time.perf_counter() - start
        trial, found[guidance] = compare(track_of(pipe, OTHER_CLASSES, guidance), scheduler, COUNTS, args.num_images)
        how = f"fitted to {TRAJECTORIES} samples of classes 0 to 4 in {seconds:.0f} s"
        title = f"Guidance {guidance:g}, {how}; classes 5 to 9"
        parts += report(title, trial, found[guidance], COUNTS, args.num_images)
        print("\n".join(parts), flush=True)
    update(args.update, "few-steps-classes", "\n".join(parts))
    return found


if __name__ == "__main__":
    run(main)
