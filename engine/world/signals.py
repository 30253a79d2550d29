"""Signals that stop a run, and how a rank ends when its launcher has ended. No torch."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""All that stop a run: Ctrl-C, launchers, a terminal that is closed, and two that queues send
before a time limit."""
ALWAYS_HANDLED = (signal.SIGINT, signal.SIGTERM)
"""Those that stop it even if they were ignored when the process started, as in background jobs of
scripts. ``nohup`` starts processes that ignore SIGHUP."""
REPEAT_SECONDS = 2.0
"""A Ctrl-C reaches a rank twice, from the terminal and from torchrun that passes it on. What comes
later than this is the user insisting."""

Handler = Callable[[int, FrameType | None], None]


@dataclass
class StopSignal:
    """What signals that stop a run do.

    At first they end the process by KeyboardInterrupt, since there is nothing to save. Once
    ``deferred`` is set they only leave their name in ``requested``, for the training loop to find
    between two steps. A user who insists by SIGINT still interrupts, but for what is
    ``deferred_until_done``; launchers repeat SIGTERM, which asks for no more than it did.
    """

    deferred: bool = False
    requested: str | None = None
    _since: float = 0.0
    _is_deferred_until_done: bool = False
    _insisted: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._since = signal.Signals(number).name, now
            if self.deferred:
                return
        elif now - self._since < REPEAT_SECONDS or (self.deferred and number != signal.SIGINT):
            return
        if self._is_deferred_until_done:
            self._insisted = True
            return
        raise KeyboardInterrupt(self.requested)

    @contextmanager
    def deferred_until_done(self) -> Iterator[None]:
        """What is done inside is done to its end, whatever comes; then the user who insists gets
        KeyboardInterrupt."""
        self._is_deferred_until_done = True
        try:
            yield
        finally:
            self._is_deferred_until_done = False
        if self._insisted:
            raise KeyboardInterrupt(self.requested)


def handled_signals() -> tuple[signal.Signals, ...]:
    """The signals that stop this process: all but those that its parent made it ignore."""
    return tuple(
        number
        for number in STOP_SIGNALS
        if number in ALWAYS_HANDLED or signal.getsignal(number) is not signal.SIG_IGN
    )


def block_signals() -> None:
    """Make signals that stop a run wait until ``unblock_signals``: a process that is still
    importing torch would die of them without a message."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def unblock_signals() -> None:
    """Let signals come, and those that have waited."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def handle_signals(handler: Handler) -> Iterator[None]:
    """Call ``handler`` for signals that stop a run; afterwards handlers, and signals that are held,
    are as before. Does nothing outside of the main thread, the only one that may have handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = {number: signal.signal(number, handler) for number in handled_signals()}
    try:
        yield
    finally:
        # First: a process that held signals at its start must not die of one at its end
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Signals that stop a run go to the StopSignal inside."""
    stop = StopSignal()
    with handle_signals(stop):
        yield stop


def raise_keyboard_interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt with the signal's name: the handler of a command without a run."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def stop_with_parent() -> None:
    """Ask the kernel (Linux) for SIGTERM when the process that started this one ends: a torchrun
    that is killed outright leaves its workers running."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
