"""What ranks say when a run fails: once, by the rank that was the first to fail."""

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
"""In our part of the store: how many ranks have failed."""
REASON = "why"
"""There, of the first of them: the reason, and the ranks that are to blame for not coming."""
SILENCE_SECONDS = 3.0
"""How long rank 0 must be gone for rank 1 to speak while the ranks are still meeting. torchrun,
which tells itself who was killed, stops rank 1 sooner."""


class RankTimeoutError(RunError):
    """Another rank did not come within the timeout."""


class LostRankError(RunError):
    """Another rank is gone, stopped or late, in words. ``reports_for_rank_0``: this rank is the
    one that tells, and rank 0, which would write it down, is among those it is about.
    ``processes``: their ids."""

    def __init__(self, text: str, *, reports_for_rank_0: bool, processes: Sequence[int]) -> None:
        super().__init__(text)
        self.reports_for_rank_0, self.processes = reports_for_rank_0, processes


class FailureReporter:
    """The voice of this rank in a store that rank 0 serves at ``address`` (None: in this process).

    ``step``: the one it is in, if any. ``liveness``: who is there, once the world is up.
    """

    def __init__(
        self,
        launch_info: LaunchInfo,
        stop_requested: Callable[[], bool],
        store: Store,
        address: tuple[str, int] | None,
    ) -> None:
        self._launch_info, self._stop_requested = launch_info, stop_requested
        self._store, self._address = store, address
        self._first: bool | None = None
        self._reported = self._lost = False
        self.liveness: LivenessMonitor | None = None
        self.step = 0

    def diagnose(self, error: BaseException, timeout: float) -> LostRankError | None:
        """What an error means that comes of another rank's absence, after up to ``timeout`` seconds
        of waiting; None for any other error. Ranks that are stopped on this machine are ended."""
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
            processes=[self.liveness.processes[rank].pid for rank in ranks],
        )

    def report(self, error: BaseException) -> bool:
        """Say why this rank fails, unless another rank has been first: the connections that it
        broke fail here too. Whether it did."""
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
        """All has been said."""
        self._reported = True

    def count_arrivals(self, event: str) -> int:
        """How many ranks have come here, this one included; 0 where the store is gone."""
        return self._query(lambda: int(self._store.add(event, 1))) or 0

    def _is_first(self) -> bool:
        if self._first is None:
            count = self.count_arrivals(FAILED)
            self._first = count == 1 if count else self._reports_for_rank_0()
        return self._first

    def _reports_for_rank_0(self) -> bool:
        """Rank 0 is gone, and its store."""
        if self._launch_info.rank != 1 or (self.liveness and self.liveness.seen):
            return False
        deadline = time.monotonic() + SILENCE_SECONDS
        while not (self._stop_requested() or self.liveness) and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.liveness is not None or not self._stop_requested()

    def _find_cause(
        self, liveness: LivenessMonitor, error: BaseException, timeout: float
    ) -> tuple[str, list[int]]:
        late = isinstance(error, RankTimeoutError) or "imed out" in str(error)
        waited = f" within {timeout:g} s" if late else ""
        if self._query(lambda: self._store.check([FAILED])):
            text, ranks = liveness.lost_ranks(waited)
        else:
            liveness.wait_until_dead(0)
            text, ranks = liveness.describe([0], waited), [0]
        reason = text or str(error).partition("\n")[0]
        return (f"step {self.step}: {reason}" if self.step else reason), ranks

    def _publish(self, text: str, ranks: list[int]) -> None:
        if self._launch_info.size > 1:
            self._query(lambda: self._set(REASON, json.dumps([text, ranks])))

    def first_failure(self) -> tuple[str, list[int]]:
        """What the first to fail has said, or will have soon."""
        deadline = time.monotonic() + 2 * ANSWER_SECONDS
        while time.monotonic() < deadline:
            found = self._query(lambda: self._store.check([REASON]))
            if found is None and self.liveness and self.liveness.seen:
                break  # rank 0 has left since
            if found is None:  # rank 1 looks first what has become of rank 0, and says so
                time.sleep(SILENCE_SECONDS)
                return "rank 0 is gone", [0]
            if found:
                text, ranks = json.loads(self._store.get(REASON))
                return text, ranks
            time.sleep(0.05)
        return "another rank failed", []

    def _set(self, key: str, value: str) -> bool:
        self._store.set(key, value)
        return True

    def _query(self, task: Callable[[], T]) -> T | None:
        """The store's answer; None where it is gone or its process stopped."""
        if self._address is None or self._launch_info.rank == 0:
            return task()
        found = None if self._lost or not self.reachable() else call_with_timeout(task)
        self._lost = found is None
        return found

    def reachable(self) -> bool:
        """Whether the store is still there; asking it would print a C++ trace if not."""
        if self._address is None or self._launch_info.rank == 0:
            return True
        try:
            socket.create_connection(self._address, timeout=2).close()
        except OSError:
            return False
        return True

    def _describe(self, error: BaseException) -> str:
        place = [f"rank {self._launch_info.rank}"] if self._launch_info.size > 1 else []
        if isinstance(error, LostRankError):
            return str(error)
        if isinstance(error, UserError | RunError | ConfigError):
            return ": ".join([*place, str(error)])
        if not self.reachable():
            place.append("rank 0 is gone")
        if isinstance(error, KeyboardInterrupt):
            return ": ".join([*place, f"stopped by {error or 'SIGINT'}"])
        trace = "".join(traceback.format_exception(error))
        place += [f"step {self.step}"] if self.step else []
        return trace + ": ".join([*place, f"failed: {type(error).__name__}: {error}"])


def _is_peer_failure(error: BaseException) -> bool:
    """Whether it says that a message did not come or go. gloo's have no type of their own."""
    if isinstance(error, RankTimeoutError | DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)
