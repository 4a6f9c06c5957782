# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""How far a run is: a bar on a terminal, and plain lines where the output goes to a file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.logging import get_logger
from tqdm.auto import tqdm

from .summary import StepClock

logger = get_logger(__name__, log_level="INFO")


class Progress:
    """
    The optimizer steps of a run. A bar shows each of them, a line what the log has.

    Args:
        max_train_steps: All of them.
        step: Those that are done.
        is_quiet: Show nothing, as all processes but the main one.
    """

    def __init__(self, max_train_steps: int, step: int = 0, is_quiet: bool = False):
        self.step, self.max_train_steps = step, max_train_steps
        self.first_step, self.start = step, time.monotonic()
        self.clock = StepClock(max_train_steps - step)
        self.is_plain = not is_quiet and not sys.stderr.isatty()
        is_off = is_quiet or self.is_plain
        self.bar = tqdm(total=max_train_steps, initial=step, desc="Steps", mininterval=1.0, disable=is_off)

    def update(self):
        """One more step is done."""
        self.step += 1
        self.bar.update()
        if (spent := self.clock.tick()) is not None:
            logger.info(spent)

    def show(self, loss: float, learning_rate: float):
        """Shows what was logged at this step."""
        self.bar.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.1e}", refresh=False)
        if self.is_plain:
            seconds = (time.monotonic() - self.start) / max(1, self.step - self.first_step)
            left = tqdm.format_interval(seconds * (self.max_train_steps - self.step))
            logger.info(
                f"step {self.step} of {self.max_train_steps}: loss {loss:.4f}, lr {learning_rate:.1e}, "
                f"{seconds:.2f} s a step, {left} left"
            )

    @contextmanager
    def part(self, name: str, total: int) -> Iterator[tqdm]:
        """A bar of its own, or a line, for what the run does between two steps."""
        if self.is_plain:
            logger.info(f"{name} ...")
        with tqdm(total=total, desc=name, leave=False, disable=self.bar.disable) as bar:
            yield bar
