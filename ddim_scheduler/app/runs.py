# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The runs that go on, and who waits for each: one that nobody waits for any more is ended."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """Ends a run that nobody waits for any more."""


class Runs:
    """The runs of all visitors."""

    def __init__(self):
        self._going_on: set[tuple[str | None, threading.Event]] = set()

    @contextmanager
    def one_of(self, visitor: str | None) -> Iterator[threading.Event]:
        """A run of a visitor. Its event is set when it is to end, at the latest when this context ends."""
        stopped = threading.Event()
        self._going_on.add((visitor, stopped))
        try:
            yield stopped
        finally:
            self._going_on.discard((visitor, stopped))
            stopped.set()

    def stop_of(self, visitor: str | None):
        """Ends the runs of a visitor who has gone."""
        for owner, stopped in tuple(self._going_on):
            if owner == visitor:
                stopped.set()

    def stop_all(self):
        """Ends the runs of all visitors."""
        for _, stopped in tuple(self._going_on):
            stopped.set()
