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

from engine.config.errors import ConfigError
from engine.disk import SAVED, explained
from engine.errors import Failed, Refused
from engine.world.compiler import compiler_failure
from engine.world.coordination.failure_report import FAILED, Absent, LastWords, Late
from engine.world.coordination.liveness import Process, RollCall, bounded, spaced
from engine.world.coordination.rendezvous import LEFT, meet, ours
from engine.world.devices import name_ranks
from engine.world.launch_environment import Place
from engine.world.signals import StopSignal

T = TypeVar("T")

LINGER_SECONDS = 5.0
"""How long rank 0 keeps the store up for ranks that have not left yet, where all leave at once."""
FAILED_LINGER_SECONDS = 2.0
"""The same where rank 0 failed: others may not know until its sockets close with its process."""
POLL_SECONDS = 0.1
NOTICE_SECONDS = 30.0
"""When rank 0 says whom it is waiting for."""


class Ranks:
    """This rank among all of a launch, and the store that they share once they have met.

    All but ``explain`` and ``tell`` is called by all ranks in the same order.
    """

    def __init__(self, place: Place, stop: StopSignal) -> None:
        self.place = place
        self.stop = stop
        self.store: Store = HashStore()
        self.run_id = ""
        self.last_words = LastWords(place, stop, self.store, None)
        self._words: Store = self.store
        self._timeout = self._pace = 0.0
        self._round = 0
        self._linger = LINGER_SECONDS

    def meet(self, timeout: float) -> None:
        """Open the store, in which ranks from now on wait for each other up to ``timeout`` seconds.

        Raises:
            Refused: the port is in use.
            Failed: rank 0 cannot be reached.
        """
        meeting = meet(self.place, timeout)
        self.store = meeting.store
        self._words = ours(self.store)
        self.last_words = LastWords(self.place, self.stop, self._words, meeting.address)
        self.run_id = meeting.run_id
        self._timeout = self._pace = timeout

    def allow(self, timeout: float) -> None:
        """Wait for each other up to ``timeout`` seconds from here on."""
        self._timeout = self._pace = timeout

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
            self.last_words.hush()
            raise Refused(said)
        return result

    def share(self, task: Callable[[], str]) -> str:
        """The result of ``task``, which rank 0 alone does, on all; refused as by ``agree``."""
        words = self.agree(task if self.place.rank == 0 else lambda: "")
        return self.exchange(words)[0]

    def answer(self, processes: Sequence[Process]) -> None:
        """From here on this rank answers when it is asked who is there. ``processes``: by rank."""
        if isinstance(self.store, TCPStore) and self.place.size > 1:
            store = ours(self.store.clone())  # type: ignore[attr-defined]
            roll = RollCall(
                store,
                self.place.rank,
                processes,
                failed=FAILED,
                reachable=self.last_words.reachable,
            )
            self.last_words.roll = roll
            roll.start()

    def keep_pace(self, timeout: float) -> None:
        """From here on rank 0 waits for the others up to ``timeout`` seconds, and they for its
        process; what it does alone, such as writing weights, may take longer."""
        self._pace = timeout

    def explain(self, error: BaseException) -> BaseException:
        """Return the error, or its meaning where it comes of another rank's absence, a full disk or
        a failing compiler."""
        return (
            explained(error, SAVED)
            or compiler_failure(error)
            or self.last_words.explain(error, self._pace)
            or error
        )

    def on_abandon(self, task: Callable[[str], None]) -> None:
        """What to do, with the reason, where this rank is held up and must be ended from outside of
        its main thread since another has failed."""
        if self.last_words.roll is not None:
            self.last_words.roll.abandon = lambda: task(self.last_words.others_word()[0])

    def tell(self, error: BaseException, told: Path | None = None) -> None:
        """Say why this rank fails, unless another rank has been first; where that is that others
        are gone, note their processes in the file ``told``."""
        self._linger = FAILED_LINGER_SECONDS
        if self.last_words.tell(error) and isinstance(error, Absent) and told is not None:
            with suppress(OSError), told.open("a") as file:  # the launcher may be gone
                file.writelines(f"{pid}\n" for pid in error.processes)

    def leave(self) -> None:
        """The last call. Rank 0, whose store it may be, leaves after the others."""
        roll, self.last_words.roll = self.last_words.roll, None
        if roll is not None:
            roll.stop()  # and let go of its connection, which keeps the store's port
        if self.place.size == 1:
            return
        left = self.last_words.count(LEFT)
        deadline = time.monotonic() + self._linger
        while self.place.rank == 0 and left < self.place.size and time.monotonic() < deadline:
            time.sleep(0.01)
            left = self._words.add(LEFT, 0)

    def _wait(self, keys: list[str]) -> None:
        """Store.wait would print a C++ trace at its timeout and hold signals up meanwhile."""
        start, limit = time.monotonic(), self._timeout if self.place.rank else self._pace
        # Rank 0 asks for all at once, as one
        longest = spaced(POLL_SECONDS, self.place.size if self.place.rank else 1)
        pause, noticed = 0.001, False
        while not self._check(keys):
            if self._check([FAILED]):
                raise Failed("another rank failed")
            waited = time.monotonic() - start
            if waited > limit:
                raise Late(f"{self._missing(keys)} did not come within {limit:.0f} s")
            if waited > NOTICE_SECONDS and not noticed and self.place.rank == 0:
                noticed = True
                print(f"waiting for {self._missing(keys)}", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _check(self, keys: list[str]) -> bool:
        """Whether all of the keys are there. Raises Late where rank 0's process is stopped."""
        if self.place.rank == 0:
            return self._words.check(keys)
        found = bounded(lambda: self._words.check(keys), self._pace)
        if found is None:
            raise Late(f"rank 0 does not answer within {self._pace:g} s")
        return found

    def _missing(self, keys: list[str]) -> str:
        if self.place.rank:
            return "rank 0"
        return name_ranks([rank for rank, key in enumerate(keys) if not self._words.check([key])])


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
