"""Liveness of the ranks: a thread on every rank, and the state of each rank's process.

After a failure the thread publishes the source line that its rank's main thread is at, even if
that thread is blocked. A rank that publishes nothing is suspended, dead or unreachable. README.md
describes the protocol.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

import psutil
from torch.distributed import PrefixStore, Store, distributed_c10d

from models.parallel import collectives

T = TypeVar("T")

POLL_SECONDS = 0.25
POLLS_PER_SECOND = 500.0
"""Upper limit on the polls of all ranks together: one thread of rank 0 serves the store."""
ANSWER_SECONDS = 5.0
"""Timeout for the answers of the other ranks, and for one answer of the store."""
EXIT_SECONDS = 20.0
"""Time for a blocked rank to exit after another rank failed, before its process is ended."""
CLOCK_SECONDS = 5.0
"""Tolerance for start times: a clock that is set shifts them."""
WAITING_MODULES = (distributed_c10d.__name__, collectives.__name__, __package__)
"""Modules, and packages with all their modules, whose functions wait for other ranks. A rank also
waits while they wait for a thread of their own, but not while they run a task of their caller."""


@dataclass(frozen=True, kw_only=True)
class RankProcess:
    """Identity of a rank's process. It includes the start times of the machine and of the process
    (Unix seconds), because host names can be equal and PIDs are reused."""

    host: str
    pid: int
    booted: float
    started: float

    @classmethod
    def current(cls) -> RankProcess:
        """Return the identity of this process."""
        process = psutil.Process()
        return cls(
            host=socket.gethostname(),
            pid=process.pid,
            booted=psutil.boot_time(),
            started=process.create_time(),
        )

    def state(self, observer: RankProcess) -> str:
        """Return 'dead', 'suspended' or 'running' for a process of this machine; '' for a process
        of another machine. ``observer``: the process that calls this."""
        if self.host != observer.host or abs(self.booted - observer.booted) > CLOCK_SECONDS:
            return ""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) > CLOCK_SECONDS:
                return "dead"  # another process has its PID
            status = process.status()
        except psutil.Error:
            return "dead"
        states = {psutil.STATUS_STOPPED: "suspended", psutil.STATUS_ZOMBIE: "dead"}
        return states.get(status, "running")


class LivenessMonitor:
    """After a failure, publishes the source line of this rank and determines the lost ranks."""

    def __init__(
        self,
        store: Store,
        rank: int,
        processes: Sequence[RankProcess],
        *,
        failed: str,
        reachable: Callable[[], bool],
    ) -> None:
        """Create the liveness thread; ``start`` starts it.

        Args:
            store: a connection for this object only; a blocking call on a connection blocks its
                other users.
            processes: the process of each rank, by rank.
            failed: the key that exists in the store once a rank has failed.
            reachable: returns whether the store can be reached; otherwise a request to it would
                print a C++ stack trace.
        """
        self._store, self._rank, self.processes = store, rank, processes
        self._reachable = reachable
        self._answers = PrefixStore("here", store)
        self._failed, self._main = failed, threading.main_thread().ident
        self._period = poll_interval(POLL_SECONDS, len(processes))
        self._stopped = threading.Event()
        self.failure_seen = self.rank_failed = False
        self.on_forced_exit: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._respond, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for it up to ``ANSWER_SECONDS``. If a rank has failed, the
        thread first publishes that this rank is not to blame: after its exit this process cannot
        answer."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(ANSWER_SECONDS)

    def lost_ranks(self, waited: str) -> tuple[str, list[int]]:
        """Wait for the answers of all ranks; return a message about the ranks to blame, and the
        numbers of these ranks; ('', []) if all ranks wait for others.

        Args:
            waited: the time in the message about ranks that timed out, such as ' within 300 s'.
        """
        lines: dict[int, str] = {}
        silent = list(range(len(self.processes)))
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            # Before the answers are read: a rank may answer and exit in between
            may_answer = [rank for rank in silent if self._state(rank) in ("running", "")]
            for rank in silent[:]:
                if self._answers.check([str(rank)]):
                    lines[rank] = self._answers.get(str(rank)).decode()
                    silent.remove(rank)
            if not may_answer or not silent or time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        if silent:
            return self.describe(silent, waited), silent
        busy = {rank: line for rank, line in lines.items() if line and rank != self._rank}
        phrases = [
            f"rank {rank} did not respond{waited}: it is at {at}" for rank, at in busy.items()
        ]
        return "; ".join(phrases), list(busy)

    def wait_until_dead(self, rank: int) -> None:
        """Wait up to ``ANSWER_SECONDS`` until the process of a rank whose connections have closed
        is dead or suspended: the kernel closes the connections of a killed process before the
        process ends, on a busy machine long before."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._state(rank) == "running" and time.monotonic() < deadline:
            time.sleep(0.01)

    def _state(self, rank: int) -> str:
        return self.processes[rank].state(self.processes[self._rank])

    def describe(self, ranks: Sequence[int], waited: str) -> str:
        """Return a message about ``ranks``, which do not answer."""
        phrases = []
        for rank in ranks:
            process, state = self.processes[rank], self._state(rank)
            name = f"rank {rank} (process {process.pid} on {process.host})"
            if state == "dead":
                phrases.append(f"{name} is dead: killed, or out of memory")
            elif state == "suspended":
                phrases.append(f"{name} is suspended (SIGSTOP) and did not respond{waited}")
            else:
                phrases.append(f"{name} did not respond{waited}")
        return "; ".join(phrases)

    def kill_suspended(self, ranks: Sequence[int]) -> None:
        """Kill the suspended ranks among ``ranks`` on this machine: SIGTERM does not reach them."""
        for rank in ranks:
            if self._state(rank) == "suspended":
                os.kill(self.processes[rank].pid, signal.SIGKILL)

    def _respond(self) -> None:
        """Run the liveness thread: publish the answer of this rank once a rank has failed; then end
        this process if the main thread does not call ``stop`` within ``EXIT_SECONDS``."""
        with suppress(RuntimeError):  # the store closed between two requests
            # Spread over the period, so that the ranks do not poll at the same moment
            self._stopped.wait(self._period * self._rank / len(self.processes))
            stopped = False
            while not stopped:
                stopped = self._stopped.wait(self._period)
                if not self._reachable():
                    break
                if self._store.check([self._failed]):
                    self.failure_seen = True
                    self._answers.set(str(self._rank), "" if stopped else self._current_line())
                    break
        if not self._stopped.wait(EXIT_SECONDS) and self.failure_seen:
            try:
                self.on_forced_exit()
            finally:
                os._exit(1)

    def _current_line(self) -> str:
        """Return the source line that the main thread runs; '' if the main thread waits for other
        ranks, or cleans up after a failure of this rank."""
        if self.rank_failed:
            return ""
        frame = sys._current_frames().get(self._main or 0)
        while frame and _module(frame) == threading.__name__:
            frame = frame.f_back
        if frame is None or _waits(frame):
            return ""
        return f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"


def _waits(frame: FrameType) -> bool:
    """Return whether the function of ``frame`` is in one of ``WAITING_MODULES``."""
    module = f"{_module(frame)}."
    return any(module.startswith(f"{waiting}.") for waiting in WAITING_MODULES)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def poll_interval(minimum: float, ranks: int) -> float:
    """Return the seconds, at least ``minimum``, between two polls of the store by one rank, so that
    all ``ranks`` together poll at most ``POLLS_PER_SECOND`` times per second."""
    return min(max(minimum, ranks / POLLS_PER_SECOND), ANSWER_SECONDS / 2)


def call_with_timeout(task: Callable[[], T], seconds: float = ANSWER_SECONDS) -> T | None:
    """Run ``task``, which may block or fail (such as a request to a store whose process is
    suspended), in a new thread. Return its result; None if it failed or timed out."""
    results: list[T] = []

    def run() -> None:
        with suppress(RuntimeError):
            results.append(task())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
