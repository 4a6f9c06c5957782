# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM: the training stops between two steps, and all of its processes at the same one."""

import contextlib
import signal
from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """
    Gathers Ctrl-C and SIGTERM (a cluster's warning) in a list, so that the training can stop between two steps. The
    third is not waited for: one Ctrl-C in a terminal comes twice under torchrun, which hands it on.
    """
    received: list[int] = []

    def note(number: int, frame):
        received.append(number)
        if len(received) > 2:
            raise KeyboardInterrupt

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def ignore_signals(worker: int):
    """For the processes that load images: a signal to all is for the one that trains."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class StopVote:
    """
    Whether to stop, asked by all processes at each step: all get the same answer.

    Args:
        accelerator: Lets the processes tell each other.
        signals: What this process has received, a list that grows.
    """

    def __init__(self, accelerator: Accelerator, signals: Sequence[int]):
        self.accelerator, self.signals = accelerator, signals
        self.asked: torch.Tensor | None = None

    def __call__(self) -> bool:
        if self.accelerator.num_processes == 1:
            return len(self.signals) > 0
        # whether any process had got one a step ago: that answer is there, and nobody waits for it
        is_stopped = self.asked is not None and self.asked.item() > 0
        mine = torch.full((), float(len(self.signals)), device=self.accelerator.device)
        self.asked = self.accelerator.reduce(mine)
        return is_stopped
