"""The ranks of a launch before, beside and after their process groups: a store they all reach.

Through it they agree that a run can start, refuse it in one voice, and say once why it failed.
"""

from __future__ import annotations

import json
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from torch.distributed import DistNetworkError, HashStore, Store

from engine.config.errors import ConfigError
from engine.devices import name_ranks
from engine.errors import Failed, Refused
from engine.leave import StopSignal
from engine.rendezvous import Place
from engine.store import LEFT, meet, ours

T = TypeVar("T")

FAILED = "failed"  # a counter in the store, as LEFT is
LINGER_SECONDS = 5.0
"""How long rank 0 keeps the store up for ranks that have not left yet, where all leave at once."""
FAILED_LINGER_SECONDS = 1.0
"""The same where rank 0 failed: others may not know until its sockets close with its process."""
SILENCE_SECONDS = 3.0
"""How long rank 0 must be gone for rank 1 to speak. torchrun, which tells itself who was killed,
stops rank 1 sooner."""
NOTICE_SECONDS = 30.0
"""When rank 0 says whom it is waiting for."""


class Ranks:
    """This rank among all of a launch, and the store that they share once they have met.

    All but ``tell`` is called by all ranks in the same order.
    """

    def __init__(self, place: Place, stop: StopSignal) -> None:
        self.place = place
        self.stop = stop
        self.store: Store = HashStore()
        self.run_id = ""
        self._words: Store = self.store
        self._address: tuple[str, int] | None = None
        self._timeout = 0.0
        self._round = 0
        self._told = False
        self._linger = LINGER_SECONDS

    def meet(self, timeout: float) -> None:
        """Open the store, in which ranks from now on wait for each other up to ``timeout`` seconds.

        Raises:
            Refused: the port is in use.
            Failed: rank 0 cannot be reached.
        """
        meeting = meet(self.place, timeout)
        self.store, self._address = meeting.store, meeting.address
        self._words = ours(self.store)
        self.run_id, self._timeout = meeting.run_id, timeout

    def consult(self, value: str, decide: Callable[[list[str]], str]) -> str:
        """Every rank gives a value, rank 0 decides by all of them, and every rank gets its word.

        Raises:
            Failed: a rank has failed meanwhile, or did not come within the timeout.
        """
        self._round += 1
        keys = [f"{self._round}/{rank}" for rank in range(self.place.size)]
        word = f"{self._round}/word"
        self._words.set(keys[self.place.rank], value)
        if self.place.rank == 0:
            self._wait(keys)
            answer = decide([self._words.get(key).decode() for key in keys])
            self._words.set(word, answer)
        else:
            self._wait([word])
            answer = self._words.get(word).decode()
        return answer

    def exchange(self, value: str) -> list[str]:
        """Every rank's value, by rank."""
        gathered: list[str] = json.loads(self.consult(value, json.dumps))
        return gathered

    def agree(self, task: Callable[[], T]) -> T:
        """The result of ``task``, which every rank does; if any rank refuses, all do.

        Rank 0 says why, once for all, before any rank can leave.

        Raises:
            Refused: on every rank, with what was said.
        """
        try:
            result, problem = task(), ""
        except (Refused, ConfigError) as refusal:
            problem = str(refusal)
        said = self.consult(problem, _say)
        if said:
            self._told = True
            raise Refused(said)
        return result

    def share(self, task: Callable[[], str]) -> str:
        """The result of ``task``, which rank 0 alone does, on all; refused as by ``agree``."""
        words = self.agree(task if self.place.rank == 0 else lambda: "")
        return self.exchange(words)[0]

    def tell(self, error: BaseException) -> None:
        """Say why this rank fails, unless another rank has been first: the connections that it
        broke fail here too."""
        if self._told:
            return
        self._told, self._linger = True, FAILED_LINGER_SECONDS
        try:
            if self._first_to_fail():
                print(self._describe(error), file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            pass  # torchrun ends the others once one has failed

    def leave(self) -> None:
        """The last call. Rank 0, whose store it may be, leaves after the others."""
        if self.place.size == 1:
            return
        left = self._count(LEFT)
        deadline = time.monotonic() + self._linger
        while self.place.rank == 0 and left < self.place.size and time.monotonic() < deadline:
            time.sleep(0.01)
            left = self._words.add(LEFT, 0)

    def _wait(self, keys: list[str]) -> None:
        """Store.wait would print a C++ trace at its timeout and hold signals up meanwhile."""
        start = time.monotonic()
        pause, noticed = 0.001, False
        while not self._words.check(keys):
            if self._words.check([FAILED]):
                raise Failed("another rank failed")
            waited = time.monotonic() - start
            if waited > self._timeout:
                raise Failed(f"{self._missing(keys)} did not come within {self._timeout:.0f} s")
            if waited > NOTICE_SECONDS and not noticed and self.place.rank == 0:
                noticed = True
                print(f"waiting for {self._missing(keys)}", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def _missing(self, keys: list[str]) -> str:
        if self.place.rank:
            return "rank 0"
        return name_ranks([rank for rank, key in enumerate(keys) if not self._words.check([key])])

    def _first_to_fail(self) -> bool:
        if first := self._count(FAILED):
            return first == 1
        if self.place.rank != 1:
            return False
        deadline = time.monotonic() + SILENCE_SECONDS
        while self.stop.requested is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.stop.requested is None

    def _count(self, what: str) -> int:
        """How many ranks have come here, this one included; 0 where the store is gone."""
        try:
            return int(self._words.add(what, 1)) if self._reachable() else 0
        except DistNetworkError:  # it went in between
            return 0

    def _reachable(self) -> bool:
        """Whether the store is still there; asking it would print a C++ trace if not."""
        if self._address is None or self.place.rank == 0:
            return True
        try:
            socket.create_connection(self._address, timeout=2).close()
        except OSError:
            return False
        return True

    def _describe(self, error: BaseException) -> str:
        who = f"rank {self.place.rank}: " if self.place.size > 1 else ""
        if not self._reachable():
            who += "rank 0 is gone: "
        if isinstance(error, KeyboardInterrupt):
            return f"{who}stopped by {error or 'SIGINT'}"
        if isinstance(error, Refused | Failed | ConfigError):
            return f"{who}{error}"
        trace = "".join(traceback.format_exception(error))
        return f"{trace}{who}failed: {type(error).__name__}: {error}"


def _say(problems: list[str]) -> str:
    """Print what ranks refuse, each reason once; nothing where there is none."""
    reasons: dict[str, list[int]] = {}
    for rank, problem in enumerate(problems):
        if problem:
            reasons.setdefault(problem, []).append(rank)
    lines = [
        problem if 0 in who else f"{name_ranks(who)}: {problem}" for problem, who in reasons.items()
    ]
    said = "\n".join(lines)
    if said:
        print(said, file=sys.stderr, flush=True)
    return said
