"""How a rank is told to stop, and that it never outlives the launcher that started it."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

ECHO_SECONDS = 2.0
"""A Ctrl-C reaches a rank twice, from the terminal and from torchrun that passes it on. What comes
later than this is the user insisting."""


@dataclass
class StopSignal:
    """What SIGINT and SIGTERM do.

    At first they end the process by KeyboardInterrupt, since there is nothing to save. Once
    ``deferred`` is set they only leave their name in ``requested``, for the training loop to find
    between two steps. A user who insists by SIGINT still interrupts, but for what is ``unbroken``;
    launchers repeat SIGTERM, which asks for no more than it did.
    """

    deferred: bool = False
    requested: str | None = None
    _since: float = 0.0
    _unbroken: bool = False
    _insisted: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._since = signal.Signals(number).name, now
            if self.deferred:
                outlive_parent()
                return
        elif now - self._since < ECHO_SECONDS or (self.deferred and number != signal.SIGINT):
            return
        if self._unbroken:
            self._insisted = True
            return
        raise KeyboardInterrupt(self.requested)

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """What is done inside is done to its end, whatever comes; then the user who insists gets
        KeyboardInterrupt."""
        self._unbroken = True
        try:
            yield
        finally:
            self._unbroken = False
        if self._insisted:
            raise KeyboardInterrupt(self.requested)


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """SIGINT and SIGTERM go to the StopSignal inside; before and after as they were."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may have handlers
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when the one that started it ends: a torchrun
    that is killed outright leaves its workers running."""
    _at_parents_death(signal.SIGKILL)


def outlive_parent() -> None:
    """No longer: this process is saving, to leave by itself, and a launcher that is told twice to
    stop may be gone before it."""
    _at_parents_death(0)


def _at_parents_death(number: int) -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)
