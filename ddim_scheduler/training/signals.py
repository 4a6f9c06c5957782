# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM: the training stops between two steps, and all of its processes at the same one."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

NUMBERS = (signal.SIGINT, signal.SIGTERM)
# one Ctrl-C in a terminal comes twice under torchrun, which hands it on
SAME_SIGNAL_SECONDS = 1.0


@contextlib.contextmanager
def noted_signals(is_quiet: bool = False) -> Iterator[list[int]]:
    """
    Gathers Ctrl-C and SIGTERM (a cluster's warning) in a list, so that the training can stop between two steps.

    The first is answered by a line at once, however long a step takes: Python tells the main thread of a signal only
    between two calls of torch, and a backward pass is one call, so that another thread reads them. The next one, a
    second later or more, ends the process there and then; what a run has written is whole at any moment.

    Args:
        is_quiet: Print nothing, as all processes but the main one.
    """
    received: list[int] = []
    former = {number: signal.signal(number, lambda number, _: received.append(number)) for number in NUMBERS}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    former_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_answer, args=(reader, is_quiet), daemon=True).start()
    try:
        yield received
    finally:
        signal.set_wakeup_fd(former_fd)
        for number, handler in former.items():
            signal.signal(number, handler)
        writer.close()  # which ends the thread


def _answer(reader: socket.socket, is_quiet: bool):
    """Reads the numbers of signals as they arrive."""
    first = None
    with reader:
        while numbers := reader.recv(1):
            if numbers[0] not in NUMBERS:
                continue
            if first is None:
                first = time.monotonic()
                _say("The run stops after this step, with a checkpoint. Once more: at once, without one.", is_quiet)
            elif time.monotonic() - first > SAME_SIGNAL_SECONDS:
                _say("Stopped at once.", is_quiet)
                os._exit(128 + numbers[0])


def _say(line: str, is_quiet: bool):
    if not is_quiet:
        tqdm.write(line, file=sys.stderr)


def ignore_signals(worker: int):
    """For the processes that load images: a signal to all is for the one that trains."""
    signal.set_wakeup_fd(-1)
    for number in NUMBERS:
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
