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
"""Signals that stop a run: from Ctrl-C, a launcher, a closed terminal, and two that job queues send
before a time limit."""
ALWAYS_HANDLED = (signal.SIGINT, signal.SIGTERM)
"""Signals that stop a run even if the parent process ignored them, as shells do with SIGINT for
background jobs of scripts. Others stay ignored: ``nohup`` ignores SIGHUP."""
REPEAT_SECONDS = 2.0
"""A Ctrl-C reaches a rank twice, from the terminal and from torchrun. A signal after this time is a
second Ctrl-C of the user."""

PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
"""Looked up at import: a child forked from a process with threads must not load libraries."""

Handler = Callable[[int, FrameType | None], None]


@dataclass
class StopSignal:
    """Handler of the signals that stop a run.

    At first a signal raises KeyboardInterrupt, since there is nothing to save. Once ``deferred`` is
    set, the handler only stores the signal's name in ``requested``, which the training loop polls
    between two steps. A second SIGINT still raises KeyboardInterrupt: at once or, in the block of
    ``deferred_until_done``, at its end. A repeated SIGTERM has no effect: launchers send it twice.
    """

    deferred: bool = False
    requested: str | None = None
    _since: float = 0.0
    _is_deferred_until_done: bool = False
    _insisted: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle signal ``number``."""
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
        """Run the block to completion. A second SIGINT inside it raises KeyboardInterrupt
        afterwards."""
        self._is_deferred_until_done = True
        try:
            yield
        finally:
            self._is_deferred_until_done = False
        if self._insisted:
            raise KeyboardInterrupt(self.requested)


def handled_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that stop this process: all but those that its parent ignored."""
    return tuple(
        number
        for number in STOP_SIGNALS
        if number in ALWAYS_HANDLED or signal.getsignal(number) is not signal.SIG_IGN
    )


def block_signals() -> None:
    """Block the signals that stop a run until ``unblock_signals``: while torch is being imported,
    they would end the process without a message."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def unblock_signals() -> None:
    """Unblock the signals that stop a run, and deliver pending ones."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def handle_signals(handler: Handler) -> Iterator[None]:
    """Call ``handler`` for signals that stop a run; restore the handlers and blocked signals
    afterwards. Do nothing outside of the main thread, the only one that may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = {number: signal.signal(number, handler) for number in handled_signals()}
    try:
        yield
    finally:
        # First: a process that blocked signals at its start must not be ended by one at its end
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Yield a StopSignal that handles the signals that stop a run."""
    stop = StopSignal()
    with handle_signals(stop):
        yield stop


def raise_keyboard_interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt with the signal's name: the handler of signals in commands without a
    run."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def stop_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel (Linux) to send this process a signal when its parent process ends: a torchrun
    that is killed outright leaves its workers running."""
    if _PRCTL is not None:
        _PRCTL(PR_SET_PDEATHSIG, number)
