"""The ranks of a launch before, beside and after their process groups: a store they all reach.

Through it they agree that a run can start, or refuse it in one voice.
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
"""How long rank 0 keeps the store up for ranks that have not left yet, where all leave at once."""
FAILED_LINGER_SECONDS = 2.0
"""The same where rank 0 failed: others may not know until its sockets close with its process."""
POLL_SECONDS = 0.1
WAIT_NOTICE_SECONDS = 30.0
"""When rank 0 says whom it is waiting for."""


class ControlPlane:
    """This rank among all of a launch, and the store that they share once they have met.

    All but ``diagnose`` and ``report`` is called by all ranks in the same order.
    """

    def __init__(
        self,
        launch_info: LaunchInfo,
        *,
        stop_requested: Callable[[], bool],
        explain: Callable[[BaseException], RunError | None],
    ) -> None:
        self.launch_info = launch_info
        self._stop_requested, self._explain = stop_requested, explain
        self.store: Store = HashStore()
        self.run_id = ""
        self.failure_reporter = FailureReporter(launch_info, stop_requested, self.store, None)
        self._prefixed: Store = self.store
        self._timeout = self._pace = 0.0
        self._round = 0
        self._linger = LINGER_SECONDS

    def connect(self, timeout: float) -> None:
        """Open the store, in which ranks from now on wait for each other up to ``timeout`` seconds.

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
        self._timeout = self._pace = timeout

    def set_timeout(self, timeout: float) -> None:
        """Wait for each other up to ``timeout`` seconds from here on."""
        self._timeout = self._pace = timeout

    def gather_decide_broadcast(self, value: str, decide: Callable[[list[str]], str]) -> str:
        """Every rank gives a value, rank 0 decides by all of them, and every rank gets its word.

        Raises:
            RunError: a rank has failed meanwhile, or did not come within the timeout.
        """
        self._round += 1
        keys = [f"{self._round}/{rank}" for rank in range(self.launch_info.size)]
        word = f"{self._round}/word"
        self._prefixed.set(keys[self.launch_info.rank], value)
        if self.launch_info.rank == 0:
            self._wait(keys)
            answer = decide([self._prefixed.get(key).decode() for key in keys])
            self._prefixed.set(word, answer)
        else:
            self._wait([word])
            answer = self._prefixed.get(word).decode()
        return answer

    def all_gather(self, value: str) -> list[str]:
        """Every rank's value, by rank."""
        gathered: list[str] = json.loads(self.gather_decide_broadcast(value, json.dumps))
        return gathered

    def run_on_all(self, task: Callable[[], T]) -> T:
        """The result of ``task``, which every rank does; if any rank refuses, all do.

        Rank 0 says why, once for all, before any rank can leave.

        Raises:
            UserError: on every rank, with what was said.
        """
        try:
            result, problem = task(), ""
        except (UserError, ConfigError) as refusal:
            problem = str(refusal)
        said = self.gather_decide_broadcast(problem, _print_errors)
        if said:
            self.failure_reporter.mark_reported()
            raise UserError(said)
        return result

    def run_on_rank_0(self, task: Callable[[], str]) -> str:
        """The result of ``task``, which rank 0 alone does, on all; refused as by ``run_on_all``."""
        result = self.run_on_all(task if self.launch_info.rank == 0 else lambda: "")
        return self.all_gather(result)[0]

    def start_liveness(self, processes: Sequence[RankProcess]) -> None:
        """From here on this rank answers when it is asked who is there. ``processes``: by rank."""
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
        """From here on rank 0 waits for the others up to ``timeout`` seconds, and they for its
        process; what it does alone, such as writing weights, may take longer."""
        self._pace = timeout

    def diagnose(self, error: BaseException) -> BaseException:
        """Return the error, or its meaning where it comes of another rank's absence, a full disk or
        a failing compiler."""
        return self._explain(error) or self.failure_reporter.diagnose(error, self._pace) or error

    def on_forced_exit(self, task: Callable[[str], None]) -> None:
        """What to do, with the reason, where this rank is held up and must be ended from outside of
        its main thread since another has failed."""
        if self.failure_reporter.liveness is not None:
            self.failure_reporter.liveness.on_forced_exit = lambda: task(
                self.failure_reporter.first_failure()[0]
            )

    def report(self, error: BaseException, lost_pids_file: Path | None = None) -> None:
        """Say why this rank fails, unless another rank has been first; where that is that others
        are gone, note their processes in the file ``lost_pids_file``."""
        self._linger = FAILED_LINGER_SECONDS
        if (
            self.failure_reporter.report(error)
            and isinstance(error, LostRankError)
            and lost_pids_file is not None
        ):
            with suppress(OSError), lost_pids_file.open("a") as file:  # the launcher may be gone
                file.writelines(f"{pid}\n" for pid in error.processes)

    def shutdown(self) -> None:
        """The last call. Rank 0, whose store it may be, leaves after the others."""
        liveness, self.failure_reporter.liveness = self.failure_reporter.liveness, None
        if liveness is not None:
            liveness.stop()  # and let go of its connection, which keeps the store's port
        if self.launch_info.size == 1:
            return
        left = self.failure_reporter.count_arrivals(EXITED)
        deadline = time.monotonic() + self._linger
        while (
            self.launch_info.rank == 0
            and left < self.launch_info.size
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
            left = self._prefixed.add(EXITED, 0)

    def _wait(self, keys: list[str]) -> None:
        """Store.wait would print a C++ trace at its timeout and hold signals up meanwhile."""
        start, limit = time.monotonic(), self._timeout if self.launch_info.rank else self._pace
        # Rank 0 asks for all at once, as one
        longest = poll_interval(POLL_SECONDS, self.launch_info.size if self.launch_info.rank else 1)
        pause, noticed = 0.001, False
        while not self._all_present(keys):
            if self._all_present([FAILED]):
                raise RunError("another rank failed")
            waited = time.monotonic() - start
            if waited > limit:
                raise RankTimeoutError(
                    f"{self._missing_ranks(keys)} did not come within {limit:.0f} s"
                )
            if waited > WAIT_NOTICE_SECONDS and not noticed and self.launch_info.rank == 0:
                noticed = True
                print(f"waiting for {self._missing_ranks(keys)}", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _all_present(self, keys: list[str]) -> bool:
        """Whether all of the keys are there. Raises RankTimeoutError where rank 0's process is
        stopped."""
        if self.launch_info.rank == 0:
            return self._prefixed.check(keys)
        found = call_with_timeout(lambda: self._prefixed.check(keys), self._pace)
        if found is None:
            raise RankTimeoutError(f"rank 0 does not answer within {self._pace:g} s")
        return found

    def _missing_ranks(self, keys: list[str]) -> str:
        if self.launch_info.rank:
            return "rank 0"
        return format_ranks(
            [rank for rank, key in enumerate(keys) if not self._prefixed.check([key])]
        )


def _print_errors(problems: list[str]) -> str:
    """Print what ranks refuse, each reason once; nothing where there is none."""
    reasons: dict[str, list[int]] = {}
    for rank, problem in enumerate(problems):
        if problem:
            reasons.setdefault(problem, []).append(rank)
    lines = [
        problem if 0 in who else f"{format_ranks(who)}: {problem}"
        for problem, who in reasons.items()
    ]
    said = "\n".join(lines)
    if said:
        print(said, file=sys.stderr, flush=True)
    return said
