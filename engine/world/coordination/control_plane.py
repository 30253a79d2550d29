"""Communication of the ranks through a store, independent of their process groups.

The ranks use the store to start a run or reject it together, before process groups exist, and to
report a failure after the process groups are broken. README.md describes the protocol.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from torch.distributed import HashStore, Store, TCPStore

from engine.errors import ConfigError, RunError, UserError
from engine.formatting import format_ranks
from engine.world.coordination.failure_report import (
    FAILED,
    FailureReporter,
    LostRankError,
    RankTimeoutError,
)
from engine.world.coordination.launch_environment import LaunchInfo
from engine.world.coordination.liveness import (
    LivenessMonitor,
    RankProcess,
    call_with_timeout,
    poll_interval,
)
from engine.world.coordination.rendezvous import EXITED, cuboid_prefix, rendezvous

T = TypeVar("T")

LINGER_SECONDS = 5.0
"""At the end rank 0 serves the store for the other ranks, at most this long."""
FAILED_LINGER_SECONDS = 2.0
"""LINGER_SECONDS after a failure, which some ranks notice only when rank 0's sockets close at its
exit."""
POLL_SECONDS = 0.1
WAIT_NOTICE_SECONDS = 30.0
"""After this long rank 0 prints which ranks it waits for."""


class ControlPlane:
    """The connection of this rank to the other ranks of its launch, through a store that rank 0
    serves.

    All ranks call the methods in the same order, except ``diagnose`` and ``report``.
    """

    def __init__(
        self,
        launch_info: LaunchInfo,
        *,
        stop_requested: Callable[[], bool],
        explain: Callable[[BaseException], RunError | None],
    ) -> None:
        """Prepare for ``connect``.

        Args:
            stop_requested: returns whether this rank got a signal that stops it.
            explain: translates an error that no other rank caused, such as a full disk, into one
                for users; returns None for any other error.
        """
        self.launch_info = launch_info
        self._stop_requested, self._explain = stop_requested, explain
        self.store: Store = HashStore()
        self.run_id = ""
        self.failure_reporter = FailureReporter(launch_info, stop_requested, self.store, None)
        self._prefixed: Store = self.store
        self._timeout = self._step_timeout = 0.0
        self._round = 0
        self._linger = LINGER_SECONDS

    def connect(self, timeout: float) -> None:
        """Start the store (rank 0) or connect to it. From now on ranks wait for each other up to
        ``timeout`` seconds.

        Raises:
            UserError: the port is in use.
            RunError: rank 0 cannot be reached.
        """
        result = rendezvous(self.launch_info, timeout)
        self.store = result.store
        self._prefixed = cuboid_prefix(self.store)
        self.failure_reporter = FailureReporter(
            self.launch_info, self._stop_requested, self._prefixed, result.address
        )
        self.run_id = result.run_id
        self.set_timeout(timeout)

    def set_timeout(self, timeout: float) -> None:
        """Wait for other ranks up to ``timeout`` seconds from now on."""
        self._timeout = self._step_timeout = timeout

    def gather_decide_broadcast(self, value: str, decide: Callable[[list[str]], str]) -> str:
        """Send ``value`` to rank 0, which passes the values of all ranks, by rank, to ``decide``;
        return the result of ``decide`` on every rank.

        Raises:
            RunError: another rank failed.
            RankTimeoutError: another rank timed out.
        """
        self._round += 1
        keys = [f"{self._round}/{rank}" for rank in range(self.launch_info.size)]
        decision = f"{self._round}/word"
        self._prefixed.set(keys[self.launch_info.rank], value)
        if self.launch_info.rank == 0:
            self._wait(keys)
            answer = decide([self._prefixed.get(key).decode() for key in keys])
            self._prefixed.set(decision, answer)
        else:
            self._wait([decision])
            answer = self._prefixed.get(decision).decode()
        return answer

    def all_gather(self, value: str) -> list[str]:
        """Send ``value`` to all ranks, and return the values of all ranks, by rank."""
        gathered: list[str] = json.loads(self.gather_decide_broadcast(value, json.dumps))
        return gathered

    def run_on_all(self, task: Callable[[], T]) -> T:
        """Run ``task`` on every rank and return this rank's result. If ``task`` raises UserError or
        ConfigError on any rank, rank 0 prints all messages, and every rank raises.

        Raises:
            UserError: on every rank, with the printed text.
        """
        try:
            result, problem = task(), ""
        except (UserError, ConfigError) as error:
            problem = str(error)
        printed = self.gather_decide_broadcast(problem, _print_errors)
        if printed:
            self.failure_reporter.mark_reported()
            raise UserError(printed)
        return result

    def run_on_rank_0(self, task: Callable[[], T]) -> T:
        """Run ``task`` on rank 0 only and return its result, a JSON value, on every rank. Errors
        are raised on every rank, as in ``run_on_all``."""
        result = self.run_on_all(task if self.launch_info.rank == 0 else lambda: None)
        of_rank_0: T = json.loads(self.all_gather(json.dumps(result))[0])
        return of_rank_0

    def start_liveness(self, processes: Sequence[RankProcess]) -> None:
        """Start the liveness thread of this rank. ``processes``: the process of each rank, by
        rank."""
        if isinstance(self.store, TCPStore) and self.launch_info.size > 1:
            store = cuboid_prefix(self.store.clone())  # type: ignore[attr-defined]
            liveness = LivenessMonitor(
                store,
                self.launch_info.rank,
                processes,
                failed=FAILED,
                reachable=self.failure_reporter.reachable,
            )
            self.failure_reporter.liveness = liveness
            liveness.start()

    def use_step_timeout(self, timeout: float) -> None:
        """Use ``timeout`` from now on. Rank 0 waits that long for the other ranks. The other ranks
        only require rank 0's store to answer within ``timeout``, because rank 0 may work alone for
        longer, such as to write weights."""
        self._step_timeout = timeout

    def diagnose(self, error: BaseException) -> BaseException:
        """Return an error with a message for users if ``error`` has a known cause, such as a lost
        rank; else ``error``. If suspended ranks are the cause, kill those on this machine."""
        if self.failure_reporter.liveness is not None:
            self.failure_reporter.liveness.rank_failed = True
        return (
            self._explain(error)
            or self.failure_reporter.diagnose(error, self._step_timeout)
            or error
        )

    def on_forced_exit(self, task: Callable[[str], None]) -> None:
        """Register ``task(message)``, which the liveness thread calls just before it ends this
        process because another rank failed and the main thread is blocked."""
        if self.failure_reporter.liveness is not None:
            self.failure_reporter.liveness.on_forced_exit = lambda: task(
                self.failure_reporter.first_failure()[0]
            )

    def report(self, error: BaseException, lost_pids_file: Path | None = None) -> None:
        """Print why this rank failed, unless another rank failed first. Append the PIDs of lost
        ranks to ``lost_pids_file``, one per line."""
        self._linger = FAILED_LINGER_SECONDS
        if (
            self.failure_reporter.report(error)
            and isinstance(error, LostRankError)
            and lost_pids_file is not None
        ):
            with (
                suppress(OSError),
                lost_pids_file.open("a") as file,
            ):  # the launcher may have exited
                file.writelines(f"{pid}\n" for pid in error.pids)

    def shutdown(self) -> None:
        """Close the connection to the store; call no method afterwards. Rank 0 waits for the other
        ranks first, since its process serves the store."""
        liveness, self.failure_reporter.liveness = self.failure_reporter.liveness, None
        if liveness is not None:
            liveness.stop()
        if self.launch_info.size == 1:
            return
        exited = self.failure_reporter.count_arrivals(EXITED)
        deadline = time.monotonic() + self._linger
        while (
            self.launch_info.rank == 0
            and exited < self.launch_info.size
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
            exited = self._prefixed.add(EXITED, 0)

    def _wait(self, keys: list[str]) -> None:
        """Poll until all ``keys`` exist in the store. Store.wait would block signal handlers, and
        print a C++ stack trace when it times out.

        Raises:
            RunError: another rank failed.
            RankTimeoutError: another rank timed out.
        """
        start = time.monotonic()
        limit = self._timeout if self.launch_info.rank else self._step_timeout
        # Rank 0 polls for the keys of all ranks in one request
        longest = poll_interval(POLL_SECONDS, self.launch_info.size if self.launch_info.rank else 1)
        pause, noticed = 0.001, False
        while not self._all_present(keys):
            if self._all_present([FAILED]):
                raise RunError("another rank failed")
            waited = time.monotonic() - start
            if waited > limit:
                raise RankTimeoutError(
                    f"{self._missing_ranks(keys)} did not respond within {limit:.0f} s"
                )
            if waited > WAIT_NOTICE_SECONDS and not noticed and self.launch_info.rank == 0:
                noticed = True
                print(f"waiting for {self._missing_ranks(keys)}", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _all_present(self, keys: list[str]) -> bool:
        """Return whether all ``keys`` exist in the store.

        Raises:
            RankTimeoutError: rank 0's process is suspended.
        """
        if self.launch_info.rank == 0:
            return self._prefixed.check(keys)
        present = call_with_timeout(lambda: self._prefixed.check(keys), self._step_timeout)
        if present is None:
            raise RankTimeoutError(f"rank 0 did not respond within {self._step_timeout:g} s")
        return present

    def _missing_ranks(self, keys: list[str]) -> str:
        """Return the names of the ranks whose key, one of ``keys``, is not in the store."""
        if self.launch_info.rank:
            return "rank 0"
        return format_ranks(
            [rank for rank, key in enumerate(keys) if not self._prefixed.check([key])]
        )


def _print_errors(problems: list[str]) -> str:
    """Print each distinct error with the ranks that have it, and return the printed text."""
    reasons: dict[str, list[int]] = {}
    for rank, problem in enumerate(problems):
        if problem:
            reasons.setdefault(problem, []).append(rank)
    lines = [
        problem if 0 in ranks else f"{format_ranks(ranks)}: {problem}"
        for problem, ranks in reasons.items()
    ]
    printed = "\n".join(lines)
    if printed:
        print(printed, file=sys.stderr, flush=True)
    return printed
