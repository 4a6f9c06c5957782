# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains a `UNet2DModel` on images, as a DDPM, and saves a pipeline that samples it by DDIM.

    accelerate launch examples/train_unconditional.py --train_data_dir photos --output_dir outputs/photos

The loop is in `ddim_scheduler/training/train_unconditional.py`, so that it also runs where the package is installed and
this repository is not, by `accelerate launch -m ddim_scheduler.training`. Copy that file to change it.
"""

from ddim_scheduler.command_line import run
from ddim_scheduler.training.train_unconditional import main

if __name__ == "__main__":
    run(main)
