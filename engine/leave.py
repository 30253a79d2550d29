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
    between two steps; a second one still interrupts.
    """

    deferred: bool = False
    requested: str | None = None
    _since: float = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._since = signal.Signals(number).name, now
            if self.deferred:
                return
        elif now - self._since < ECHO_SECONDS:
            return
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
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
