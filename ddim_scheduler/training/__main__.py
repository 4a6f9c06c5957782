# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m ddim_scheduler.training`, or `accelerate launch -m ddim_scheduler.training`."""

from ..command_line import run
from .train_unconditional import main

if __name__ == "__main__":
    run(main)
