"""World: one rank's view of the processes of a run."""

from __future__ import annotations

import json
import sys
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
    """One rank's view of the processes of a run, while their process groups are open."""

    plan: Plan
    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    backend: str
    axes: dict[str, Axis]
    """The axes by name: world, data, pipeline, tensor, and the axes of the mode."""
    traffic: Traffic
    run_id: str
    """Id of the run, the same on all ranks, and after a restart by torchrun."""
    attempt: int
    """Number of times that torchrun has restarted the launch."""
    control_plane: ControlPlane
    stop: StopSignal
    colossal: ColossalContext

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def poll_stop(self) -> bool:
        """Defer signals from the first call on, and return whether this rank got a signal that
        stops the run; the ranks combine the returned values at the end of a step. No rank passes
        the first all-reduce before all ranks have called this, so no rank is interrupted while
        another rank reports the first step as done."""
        self.stop.deferred = True
        return self.stop.requested is not None

    def stopped_by(self) -> str:
        """Return the name of the signal that stopped the run: if ranks got different signals, the
        signal of the lowest of these ranks. All ranks call this after they have agreed to stop."""
        names = self.control_plane.all_gather(self.stop.requested or "")
        return next(filter(None, names), "")

    @property
    def cpu_group(self) -> dist.ProcessGroup:
        """Return the gloo group of all ranks, which exists with any backend."""
        return self.colossal.cpu_group

    def uninterruptible(self) -> AbstractContextManager[None]:
        """Defer all signals to the end of the block, a repeated Ctrl-C included."""
        return self.stop.deferred_until_done()

    def print_rank_0(self, text: str) -> None:
        """Print a line, on rank 0 only."""
        if self.is_main:
            print(text, flush=True)

    def print_to_stderr(self, text: str) -> None:
        """Print a line to stderr, on rank 0 only, for programs whose stdout is a result."""
        if self.is_main:
            print(text, file=sys.stderr, flush=True)

    def run_on_all(self, task: Callable[[], T]) -> T:
        """Run ``task`` on every rank and return this rank's result. If ``task`` raises UserError on
        any rank, every rank raises UserError; the message is printed once."""
        return self.control_plane.run_on_all(task)

    def run_on_rank_0(self, task: Callable[[], T]) -> T:
        """Run ``task`` on rank 0 only and return its result, a JSON value, on every rank. If it
        raises UserError, every rank does; the message is printed once."""
        return self.control_plane.run_on_rank_0(task)

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        self.control_plane.all_gather("")

    def gather_problems(self, problems: Sequence[str]) -> list[str]:
        """Return the distinct problems of all ranks."""
        of_ranks = self.control_plane.all_gather(json.dumps(problems))
        return list(dict.fromkeys(problem for text in of_ranks for problem in json.loads(text)))

    def require_same(self, value: str, message: str) -> None:
        """Raise UserError on all ranks if some ranks have another ``value`` than rank 0. The error
        names these ranks, followed by ``message``."""
        values = self.control_plane.all_gather(value)
        others = [rank for rank, other in enumerate(values) if other != values[0]]
        self.control_plane.run_on_all(lambda: raise_if_any(others, message))

    def begin_step(self, step: int) -> None:
        """Set the step that error messages report, until the next call."""
        self.control_plane.failure_reporter.step = step

    @contextmanager
    def naming_lost_ranks(self, record_failure: Callable[[int, str], None]) -> Iterator[None]:
        """Replace a communication error in the block by an error that names the lost rank, on all
        ranks.

        Call ``record_failure(last complete step, message)`` where the error cannot reach the caller
        on rank 0: on the reporting rank if rank 0 is lost, and on rank 0 before its process is
        ended because its main thread is blocked.

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
            cause = self.control_plane.diagnose(error)
            if isinstance(cause, LostRankError) and cause.reports_for_rank_0:
                write(str(cause))
            raise cause from (None if cause is error else error)

    def first_step_done(self) -> None:
        """Use the timeout of a step, not the timeout of the start, from now on."""
        self.control_plane.use_step_timeout(self.plan.settings.timeout)
        self.colossal.set_timeouts(self.plan.settings.timeout)


def raise_if_any(ranks: Sequence[int], message: str) -> None:
    """Raise UserError, whose text names ``ranks`` and then ``message``, unless ``ranks`` is
    empty."""
    if ranks:
        raise UserError(f"{format_ranks(ranks)} {message}")
