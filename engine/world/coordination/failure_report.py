"""Reports why a run failed: one rank prints it, the rank that failed first (README.md).

The text about a lost rank is ``LivenessMonitor.describe()``.
"""

from __future__ import annotations

import json
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch.distributed import DistError, Store

from engine.errors import ConfigError, RunError, UserError
from engine.world.coordination.launch_environment import LaunchInfo
from engine.world.coordination.liveness import ANSWER_SECONDS, LivenessMonitor, call_with_timeout

T = TypeVar("T")

FAILED = "failed"
"""Key in the store: the number of ranks that failed."""
REASON = "why"
"""Key in the store: the message of the rank that failed first, and the ranks to blame, as JSON."""
SILENCE_SECONDS = 3.0
"""During start-up, rank 1 waits this long before it reports that rank 0 is lost. Under torchrun it
never does: torchrun reports the dead rank and stops rank 1 sooner."""


TIMED_OUT = "imed out"
"""Part of the message of a timeout: gloo's has 'Timed out', NCCL's 'timed out'."""
GLOO = "gloo"
"""Part of the message of each gloo error, which names a source file: the errors have no type."""


class RankTimeoutError(RunError):
    """Another rank timed out."""


class LostRankError(RunError):
    """Another rank died, was suspended or timed out; the message names it.

    Attributes:
        reports_for_rank_0: this rank reports the failure, because rank 0 is lost and cannot.
        pids: process ids of the lost ranks.
    """

    def __init__(self, message: str, *, reports_for_rank_0: bool, pids: Sequence[int]) -> None:
        super().__init__(message)
        self.reports_for_rank_0, self.pids = reports_for_rank_0, pids


class FailureReporter:
    """Reports through the store why this rank failed.

    Attributes:
        step: the current step, for messages; 0 outside of the steps.
        liveness: the state of the other ranks; None until the world is open.
    """

    def __init__(
        self,
        launch_info: LaunchInfo,
        stop_requested: Callable[[], bool],
        store: Store,
        address: tuple[str, int] | None,
    ) -> None:
        """Report through ``store``, which rank 0 serves at ``address`` (None: it is in this
        process). ``stop_requested`` returns whether this rank got a signal that stops it."""
        self._launch_info, self._stop_requested = launch_info, stop_requested
        self._store, self._address = store, address
        self._first: bool | None = None
        self._reported = self._lost = False
        self.liveness: LivenessMonitor | None = None
        self.step = 0

    def diagnose(self, error: BaseException, timeout: float) -> LostRankError | None:
        """Return an error that names the lost ranks if lost ranks caused ``error``, else None. Kill
        those that are suspended on this machine. ``timeout``: seconds, for the message."""
        if self.liveness is None or not _is_peer_failure(error):
            return None
        if self._is_first():
            text, ranks = self._find_cause(self.liveness, error, timeout)
            self._publish(text, ranks)
        else:
            text, ranks = self.first_failure()
        self.liveness.kill_suspended(ranks)
        return LostRankError(
            text,
            reports_for_rank_0=self._is_first() and 0 in ranks,
            pids=[self.liveness.processes[rank].pid for rank in ranks],
        )

    def report(self, error: BaseException) -> bool:
        """Print why this rank failed, unless another rank failed first, which then caused this
        error too. Return whether the error was printed."""
        if self._reported:
            return False
        self._reported = True
        try:
            if self._is_first():
                text = self._describe(error)
                self._publish(text.splitlines()[-1], [])
                print(text, file=sys.stderr, flush=True)
                return True
        except KeyboardInterrupt:
            pass  # torchrun ends the others once one has failed
        return False

    def mark_reported(self) -> None:
        """Make ``report`` print nothing from now on: the errors of all ranks have been printed."""
        self._reported = True

    def count_arrivals(self, event: str) -> int:
        """Add 1 to the store's counter of ``event``, and return the new count of ranks; 0 if the
        store cannot be reached."""
        return self._query(lambda: int(self._store.add(event, 1))) or 0

    def _is_first(self) -> bool:
        """Return whether this rank failed first, and so must report the failure."""
        if self._first is None:
            count = self.count_arrivals(FAILED)
            self._first = count == 1 if count else self._reports_for_rank_0()
        return self._first

    def _reports_for_rank_0(self) -> bool:
        """Return whether this rank must report in place of rank 0, which is lost and the store with
        it: True on rank 1, unless rank 1 is stopped or has already seen the failure in the
        store."""
        if self._launch_info.rank != 1 or (self.liveness and self.liveness.failure_seen):
            return False
        deadline = time.monotonic() + SILENCE_SECONDS
        while not (self._stop_requested() or self.liveness) and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.liveness is not None or not self._stop_requested()

    def _find_cause(
        self, liveness: LivenessMonitor, error: BaseException, timeout: float
    ) -> tuple[str, list[int]]:
        """Find the ranks that caused ``error``; return a message about these ranks, and their
        numbers."""
        timed_out = isinstance(error, RankTimeoutError) or TIMED_OUT in str(error)
        waited = f" within {timeout:g} s" if timed_out else ""
        if self._query(lambda: self._store.check([FAILED])):
            text, ranks = liveness.lost_ranks(waited)
        else:
            liveness.wait_until_dead(0)
            text, ranks = liveness.describe([0], waited), [0]
        reason = text or str(error).partition("\n")[0]
        return (f"step {self.step}: {reason}" if self.step else reason), ranks

    def _publish(self, text: str, ranks: list[int]) -> None:
        """Write the message ``text`` and the lost ``ranks`` to the store, for the other ranks."""
        if self._launch_info.size > 1:
            self._query(lambda: self._set(REASON, json.dumps([text, ranks])))

    def first_failure(self) -> tuple[str, list[int]]:
        """Wait for the report of the rank that failed first; return its message and the ranks to
        blame."""
        deadline = time.monotonic() + 2 * ANSWER_SECONDS
        while time.monotonic() < deadline:
            reported = self._query(lambda: self._store.check([REASON]))
            if reported is None and self.liveness and self.liveness.failure_seen:
                break  # rank 0 has exited since
            if reported is None:  # rank 1 prints its own report of rank 0's state first
                time.sleep(SILENCE_SECONDS)
                return "rank 0 is lost", [0]
            if reported:
                text, ranks = json.loads(self._store.get(REASON))
                return text, ranks
            time.sleep(0.05)
        return "another rank failed", []

    def _set(self, key: str, value: str) -> bool:
        self._store.set(key, value)
        return True

    def _query(self, task: Callable[[], T]) -> T | None:
        """Run ``task``, a request to the store, and return its result. Return None, for all later
        requests too, once the store cannot be reached or does not answer."""
        if self._address is None or self._launch_info.rank == 0:
            return task()
        answer = None if self._lost or not self.reachable() else call_with_timeout(task)
        self._lost = answer is None
        return answer

    def reachable(self) -> bool:
        """Return whether the store can be reached. Otherwise a request to it would print a C++
        stack trace."""
        if self._address is None or self._launch_info.rank == 0:
            return True
        try:
            socket.create_connection(self._address, timeout=2).close()
        except OSError:
            return False
        return True

    def _describe(self, error: BaseException) -> str:
        """Return the message for stderr: this rank, the step and ``error``, with a traceback if
        ``error`` is not meant for users."""
        prefix = [f"rank {self._launch_info.rank}"] if self._launch_info.size > 1 else []
        if isinstance(error, LostRankError):
            return str(error)
        if isinstance(error, UserError | RunError | ConfigError):
            return ": ".join([*prefix, str(error)])
        if not self.reachable():
            prefix.append("rank 0 is lost")
        if isinstance(error, KeyboardInterrupt):
            return ": ".join([*prefix, f"stopped by {error or 'SIGINT'}"])
        trace = "".join(traceback.format_exception(error))
        prefix += [f"step {self.step}"] if self.step else []
        return trace + ": ".join([*prefix, f"failed: {type(error).__name__}: {error}"])


def _is_peer_failure(error: BaseException) -> bool:
    """Return whether communication with another rank failed."""
    if isinstance(error, RankTimeoutError | DistError):
        return True
    return isinstance(error, RuntimeError) and GLOO in str(error)
