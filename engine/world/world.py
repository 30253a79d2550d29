"""A rank of a running world, as all that trains and measures sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from engine.errors import Refused
from engine.world.colossal import Colossal
from engine.world.coordination.control_plane import Ranks
from engine.world.coordination.failure_report import Absent
from engine.world.devices import name_ranks
from models.parallel.collectives import Axis, Traffic

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.runs.folder import RunFolder

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """A rank of a running world.

    ``axes`` has world, data, pipeline, tensor, model, and the mode's own. ``run_id`` is the same on
    all ranks and over torchrun's restarts, of which this is number ``attempt``.
    """

    plan: Plan
    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    backend: str
    axes: dict[str, Axis]
    traffic: Traffic
    run_id: str
    attempt: int
    ranks: Ranks
    colossal: Colossal

    @property
    def coordinates(self) -> dict[str, int]:
        """This rank's index on every axis of the layout."""
        return self.plan.layout.coordinates(self.rank)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def asked_to_stop(self) -> bool:
        """Return whether this rank got a signal that stops a run, for the ranks to agree on at the
        end of a step. From the first call on a signal no longer interrupts this rank: no rank is
        past the first agreement before all have called this, so none is interrupted while another
        reports the first step as done."""
        self.ranks.stop.deferred = True
        return self.ranks.stop.requested is not None

    def stopped_by(self) -> str:
        """The name of the signal that a rank got; of several, the first rank's. All ranks call
        this after they have agreed to stop."""
        names = self.ranks.exchange(self.ranks.stop.requested or "")
        return next(filter(None, names), "")

    @property
    def cpu_group(self) -> dist.ProcessGroup:
        """All ranks, over gloo whatever the backend is."""
        return self.colossal.cpu_group

    def unbroken(self) -> AbstractContextManager[None]:
        """Inside, not even a user who insists on stopping interrupts."""
        return self.ranks.stop.unbroken()

    def say(self, text: str) -> None:
        """Print a line, on rank 0 only."""
        if self.is_main:
            print(text, flush=True)

    def agree(self, task: Callable[[], T]) -> T:
        """The result of ``task``, which every rank does; where one refuses, all do, told once."""
        return self.ranks.agree(task)

    def share(self, task: Callable[[], str]) -> str:
        """The result of ``task``, which rank 0 alone does; where it refuses, all do, told once."""
        return self.ranks.share(task)

    def meet(self) -> None:
        """Wait until all ranks are here."""
        self.ranks.exchange("")

    def require_same(self, value: str, otherwise: str) -> None:
        """Refuse, on all ranks, where one has another ``value`` than rank 0; ``otherwise`` goes
        after the ranks that do."""
        told = self.ranks.exchange(value)
        others = [rank for rank, theirs in enumerate(told) if theirs != told[0]]
        self.ranks.agree(lambda: refuse_if(others, otherwise))

    def begin_step(self, step: int) -> None:
        """What follows, until the next, is told as this step's if it fails."""
        self.ranks.last_words.step = step

    @contextmanager
    def explained(self, folder: RunFolder) -> Iterator[None]:
        """Where a message does not come or go, all ranks fail of what became of whom it was from or
        for; it goes into the folder too where rank 0 cannot write that itself.

        Raises:
            Failed: another rank is gone, stopped or late.
        """

        def write(why: str) -> None:
            folder.write_status("failed", step=self.ranks.last_words.step - 1, message=why)

        if self.is_main:
            self.ranks.on_abandon(write)
        try:
            yield
        except Exception as error:
            found = self.ranks.explain(error)
            if isinstance(found, Absent) and found.stands_in:
                write(str(found))
            raise found from (None if found is error else error)

    def first_step_done(self) -> None:
        """From here on ranks are expected to keep pace."""
        self.ranks.keep_pace(self.plan.settings.timeout)
        self.colossal.set_timeouts(self.plan.settings.timeout)


def refuse_if(ranks: Sequence[int], what: str) -> None:
    """Raises Refused where there are any: they, and what they did."""
    if ranks:
        raise Refused(f"{name_ranks(ranks)} {what}")
