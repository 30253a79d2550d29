"""A rank of a running world, as all that trains and measures sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from engine.errors import UserError
from engine.formatting import format_ranks
from engine.world.colossal import ColossalContext
from engine.world.coordination.control_plane import ControlPlane
from engine.world.coordination.failure_report import LostRankError
from models.parallel.collectives import Axis, Traffic

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.world.signals import StopSignal

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
    control_plane: ControlPlane
    stop: StopSignal
    colossal: ColossalContext

    @property
    def coordinates(self) -> dict[str, int]:
        """This rank's index on every axis of the layout."""
        return self.plan.layout.coordinates(self.rank)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def stop_requested(self) -> bool:
        """Return whether this rank got a signal that stops a run, for the ranks to agree on at the
        end of a step. From the first call on a signal no longer interrupts this rank: no rank is
        past the first agreement before all have called this, so none is interrupted while another
        reports the first step as done."""
        self.stop.deferred = True
        return self.stop.requested is not None

    def stopped_by(self) -> str:
        """The name of the signal that a rank got; of several, the first rank's. All ranks call
        this after they have agreed to stop."""
        names = self.control_plane.all_gather(self.stop.requested or "")
        return next(filter(None, names), "")

    @property
    def cpu_group(self) -> dist.ProcessGroup:
        """All ranks, over gloo whatever the backend is."""
        return self.colossal.cpu_group

    def uninterruptible(self) -> AbstractContextManager[None]:
        """Inside, not even a user who insists on stopping interrupts."""
        return self.stop.deferred_until_done()

    def print_rank_0(self, text: str) -> None:
        """Print a line, on rank 0 only."""
        if self.is_main:
            print(text, flush=True)

    def run_on_all(self, task: Callable[[], T]) -> T:
        """The result of ``task``, which every rank does; where one refuses, all do, told once."""
        return self.control_plane.run_on_all(task)

    def run_on_rank_0(self, task: Callable[[], str]) -> str:
        """The result of ``task``, which rank 0 alone does; where it refuses, all do, told once."""
        return self.control_plane.run_on_rank_0(task)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.control_plane.all_gather("")

    def require_same(self, value: str, message: str) -> None:
        """Refuse, on all ranks, where one has another ``value`` than rank 0; ``message`` goes
        after the ranks that do."""
        values = self.control_plane.all_gather(value)
        others = [rank for rank, theirs in enumerate(values) if theirs != values[0]]
        self.control_plane.run_on_all(lambda: raise_if_any(others, message))

    def begin_step(self, step: int) -> None:
        """What follows, until the next, is told as this step's if it fails."""
        self.control_plane.failure_reporter.step = step

    @contextmanager
    def naming_lost_ranks(self, record_failure: Callable[[int, str], None]) -> Iterator[None]:
        """Turn a communication error inside into one that names the lost rank, on all ranks.

        Call ``record_failure(last complete step, message)`` where the error itself does not reach
        rank 0's caller: on the reporting rank if rank 0 is lost, and on rank 0 before it is ended
        because its main thread is blocked.

        Raises:
            RunError: another rank is dead, suspended or timed out.
        """

        def write(why: str) -> None:
            record_failure(self.control_plane.failure_reporter.step - 1, why)

        if self.is_main:
            self.control_plane.on_forced_exit(write)
        try:
            yield
        except Exception as error:
            found = self.control_plane.diagnose(error)
            if isinstance(found, LostRankError) and found.reports_for_rank_0:
                write(str(found))
            raise found from (None if found is error else error)

    def first_step_done(self) -> None:
        """From here on ranks are expected to keep pace."""
        self.control_plane.use_step_timeout(self.plan.settings.timeout)
        self.colossal.set_timeouts(self.plan.settings.timeout)


def raise_if_any(ranks: Sequence[int], what: str) -> None:
    """Raises UserError where there are any: they, and what they did."""
    if ranks:
        raise UserError(f"{format_ranks(ranks)} {what}")
