"""Who of a run is still there. When ranks fail because another did not come, it is told which one.

A thread on every rank looks for a failure in the store, and then says where its rank is, whatever
that waits for. Who does not say is stopped, gone or cut off.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import psutil
from torch.distributed import PrefixStore, Store

T = TypeVar("T")

POLL_SECONDS = 0.25
POLLS_PER_SECOND = 500.0
"""How often all ranks together may look into the store, which one thread of rank 0 serves."""
ANSWER_SECONDS = 5.0
"""How long ranks have to answer, and the store for anything at all."""
EXIT_SECONDS = 20.0
"""How long after another's failure a rank may still be held up by what it waits for."""
CLOCK_SECONDS = 5.0
"""How far a clock that is set may shift what a machine says of its start."""
WAITING_FILES = (
    "models/parallel/collectives.py",
    "torch/distributed/",
    "engine/world/coordination/control_plane.py",
    "engine/world/coordination/failure_report.py",
)
"""Code in which a rank waits for others."""


@dataclass(frozen=True, kw_only=True)
class RankProcess:
    """Where a rank runs. Machines may have one name, and numbers of processes come again: so when
    both ``booted`` and ``started``, in seconds since 1970."""

    host: str
    pid: int
    booted: float
    started: float

    @classmethod
    def current(cls) -> RankProcess:
        """The process that asks."""
        own = psutil.Process()
        return cls(
            host=socket.gethostname(),
            pid=own.pid,
            booted=psutil.boot_time(),
            started=own.create_time(),
        )

    def state(self, here: RankProcess) -> str:
        """'gone', 'stopped' or 'running', as the machine of ``here`` tells; '' of another's."""
        if self.host != here.host or abs(self.booted - here.booted) > CLOCK_SECONDS:
            return ""
        try:
            found = psutil.Process(self.pid)
            if abs(found.create_time() - self.started) > CLOCK_SECONDS:
                return "gone"
            status = found.status()
        except psutil.Error:
            return "gone"
        states = {psutil.STATUS_STOPPED: "stopped", psutil.STATUS_ZOMBIE: "gone"}
        return states.get(status, "running")


class LivenessMonitor:
    """Answers for this rank from ``start`` to ``stop``, and knows the others."""

    def __init__(
        self,
        store: Store,
        rank: int,
        processes: Sequence[RankProcess],
        *,
        failed: str,
        reachable: Callable[[], bool],
    ) -> None:
        """``store``: a connection of this alone, since who waits for a store keeps others from it.
        ``failed``: the key in it that says that a rank has failed. ``reachable``: whether it is
        there, for it would print a C++ trace if not."""
        self._store, self._rank, self.processes = store, rank, processes
        self._reachable = reachable
        self._answers = PrefixStore("here", store)
        self._failed, self._main = failed, threading.main_thread().ident
        self._period = poll_interval(POLL_SECONDS, len(processes))
        self._left = threading.Event()
        self.seen = False  # a failure
        self.on_forced_exit: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._respond, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """This rank leaves, in whatever way."""
        self._left.set()

    def lost_ranks(self, waited: str) -> tuple[str, list[int]]:
        """Why another's message did not come, and the ranks to blame: after the failure is known in
        the store. ``waited`` goes behind those that are late."""
        answers: dict[int, str] = {}
        silent = list(range(len(self.processes)))
        until = time.monotonic() + ANSWER_SECONDS
        while any(self._may_answer(rank) for rank in silent) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            for rank in silent[:]:
                if self._answers.check([str(rank)]):
                    answers[rank] = self._answers.get(str(rank)).decode()
                    silent.remove(rank)
        if silent:
            return self.describe(silent, waited), silent
        busy = {rank: at for rank, at in answers.items() if at and rank != self._rank}
        if busy:
            phrases = [
                f"rank {rank} did not come{waited}: it is at {at}" for rank, at in busy.items()
            ]
            return "; ".join(phrases), list(busy)
        return "", []

    def wait_until_dead(self, rank: int) -> None:
        """Wait until a rank whose connections have closed is gone or stopped, up to
        ``ANSWER_SECONDS``: the kernel closes those of a killed process before it ends the process,
        on a busy machine long before."""
        until = time.monotonic() + ANSWER_SECONDS
        while self._state(rank) == "running" and time.monotonic() < until:
            time.sleep(0.01)

    def _may_answer(self, rank: int) -> bool:
        return self._state(rank) not in ("gone", "stopped")

    def _state(self, rank: int) -> str:
        return self.processes[rank].state(self.processes[self._rank])

    def describe(self, ranks: Sequence[int], waited: str) -> str:
        """What has become of ranks that do not answer."""
        phrases = []
        for rank in ranks:
            process, state = self.processes[rank], self._state(rank)
            who = f"rank {rank} (process {process.pid} on {process.host})"
            if state == "gone":
                phrases.append(f"{who} is gone: killed, or out of memory")
            elif state == "stopped":
                phrases.append(f"{who} is stopped, and did not come{waited}")
            else:
                phrases.append(f"{who} does not answer, and did not come{waited}")
        return "; ".join(phrases)

    def kill_suspended(self, ranks: Sequence[int]) -> None:
        """Kill those of the ranks that are stopped on this machine: SIGTERM does not reach them."""
        for rank in ranks:
            if self._state(rank) == "stopped":
                os.kill(self.processes[rank].pid, signal.SIGKILL)

    def _respond(self) -> None:
        with suppress(RuntimeError):  # the store has gone in between
            self._left.wait(self._period * self._rank / len(self.processes))  # not all at once
            while not self._left.wait(self._period) and self._reachable():
                if self._store.check([self._failed]):
                    self.seen = True
                    self._answers.set(str(self._rank), self._current_line())
                    break
        if not self._left.wait(EXIT_SECONDS) and self.seen:
            try:
                self.on_forced_exit()
            finally:
                os._exit(1)

    def _current_line(self) -> str:
        """The line this rank is at; nothing where it waits for others."""
        frame = sys._current_frames().get(self._main or 0)
        stack = traceback.extract_stack(frame)
        if not stack or any(part in line.filename for line in stack for part in WAITING_FILES):
            return ""
        return f"{stack[-1].filename}:{stack[-1].lineno}, in {stack[-1].name}"


def poll_interval(minimum: float, ranks: int) -> float:
    """Seconds between two looks of one of so many ``ranks`` into the store, ``minimum`` for a
    few."""
    return min(max(minimum, ranks / POLLS_PER_SECOND), ANSWER_SECONDS / 2)


def call_with_timeout(task: Callable[[], T], seconds: float = ANSWER_SECONDS) -> T | None:
    """The result of a task that may hang or fail, such as asking a store whose process is stopped;
    None in both cases."""
    found: list[T] = []

    def run() -> None:
        with suppress(RuntimeError):
            found.append(task())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None
