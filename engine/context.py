"""From a plan to a running world: process groups, device, seeds, and a clean leave."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from engine.colossal import Colossal
from engine.config.errors import ConfigError
from engine.devices import Assignment, Card, assign, name_ranks
from engine.errors import Failed, Refused
from engine.last_words import Absent
from engine.leave import die_with_parent, stop_signal
from engine.ranks import Ranks
from engine.rendezvous import Place
from engine.roll_call import Process
from models.parallel.collectives import Axis, Traffic

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.run_folder import RunFolder

T = TypeVar("T")

REFUSAL_SECONDS = 60.0
"""How long ranks wait for each other where no plan could be made that says so."""


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

    @property
    def stop_requested(self) -> bool:
        """Whether this rank got SIGINT or SIGTERM after its first step."""
        return self.ranks.stop.requested is not None

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
        self.ranks.agree(lambda: _refuse_if(others, otherwise))

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
        """From here on ranks are expected to keep pace, and to stop between two steps."""
        self.ranks.stop.deferred = True
        self.ranks.keep_pace(self.plan.settings.timeout)
        _set_timeouts(self.colossal, self.plan.settings.timeout)


@contextmanager
def open_world(
    make_plan: Callable[[], Plan],
    place: Place,
    *,
    backend: str | None = None,
    told: Path | None = None,
) -> Iterator[World]:
    """The world that ``place`` is in, running as the plan says; ``backend`` goes before the plan's.
    Processes of ranks that are told to be gone are noted in the file ``told``, one a line.

    On the way out, whatever ends it, all groups are closed. An error inside is told to the user
    once over all ranks.

    Raises:
        Refused: the plan, this machine or what is installed on it cannot be used. Told.
        Failed: for any other exception inside, or an interrupt. Told.
    """
    if place.launch is not None and place.launcher == "torchrun":
        die_with_parent()
    colossal: Colossal | None = None
    failed = True
    with stop_signal() as stop:
        ranks = Ranks(place, stop)
        try:
            plan, problem = _attempt(make_plan)
            ranks.meet(plan.settings.start_timeout if plan else REFUSAL_SECONDS)
            plan, colossal = ranks.agree(lambda: _check(plan, problem, place))
            yield _open(plan, ranks, colossal, backend)
            ranks.exchange("")  # a rank that closes its end may break what another still does
            failed = False
        except (Exception, KeyboardInterrupt) as caught:
            error = ranks.explain(caught)
            ranks.tell(error, told)
            if isinstance(error, Refused | Failed):
                raise error from error.__cause__
            if isinstance(error, ConfigError):
                raise Refused(str(error)) from error
            raise Failed(f"{type(error).__name__}: {error}") from error
        finally:
            if colossal is not None:
                colossal.close(failed=failed)
            ranks.leave()


def _attempt(make_plan: Callable[[], Plan]) -> tuple[Plan | None, Exception | None]:
    """The plan, or why there is none: to be told when the ranks have met."""
    try:
        return make_plan(), None
    except Exception as error:
        return None, error


def _check(plan: Plan | None, problem: Exception | None, place: Place) -> tuple[Plan, Colossal]:
    """What can be told before anything is opened."""
    if problem is not None:
        raise problem
    assert plan is not None
    if plan.layout.gpus != place.size:
        raise Refused(
            f"{plan.settings.source}: the layout has {plan.layout.gpus} ranks, and "
            f"{place.launcher} started {place.size}"
        )
    return plan, Colossal()


def _open(plan: Plan, ranks: Ranks, colossal: Colossal, asked: str | None) -> World:
    place, settings = ranks.place, plan.settings
    mine = [asdict(Process.this()), _gpu_ids(), plan.fingerprint, ranks.run_id]
    told = [json.loads(text) for text in ranks.exchange(json.dumps(mine))]
    places, gpus, fingerprints, run_ids = zip(*told, strict=True)
    processes = [Process(**where) for where in places]
    ranks.answer(processes)
    cards = [Card(host=p.host, gpus=tuple(ids)) for p, ids in zip(processes, gpus, strict=True)]

    def decide() -> Assignment:
        _compare(fingerprints)
        return assign(cards, asked or settings.backend, nccl=dist.is_nccl_available())

    assignment = ranks.agree(decide)
    if place.rank == 0:
        for warning in assignment.warnings:
            print(f"warning: {warning}", file=sys.stderr, flush=True)

    gpu = assignment.gpus[place.rank]
    if gpu is not None:
        torch.cuda.set_device(gpu)
    dist.init_process_group(
        assignment.backend,
        store=ranks.store,
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(seconds=settings.start_timeout),
    )
    colossal.open(plan.layout, place.rank)
    _set_timeouts(colossal, settings.start_timeout)
    _seed(settings.seed)
    traffic = Traffic()
    return World(
        plan=plan,
        rank=place.rank,
        size=place.size,
        local_rank=assignment.local_ranks[place.rank],
        local_size=assignment.local_sizes[place.rank],
        device=torch.device("cpu") if gpu is None else torch.device("cuda", gpu),
        backend=assignment.backend,
        axes=_axes(plan, colossal, place.rank, traffic),
        traffic=traffic,
        run_id=run_ids[0],
        attempt=place.attempt,
        ranks=ranks,
        colossal=colossal,
    )


def _axes(plan: Plan, colossal: Colossal, rank: int, traffic: Traffic) -> dict[str, Axis]:
    """Our axes on Colossal-AI's groups, by the names it has for them."""
    names = {
        "world": "GLOBAL",
        "data": "DATA",
        "pipeline": "PIPELINE",
        "model": "MODEL",
        "tensor": "TENSOR",
        **plan.layout.mode.colossal,
    }
    axes = {}
    for name, theirs in names.items():
        group, members = colossal.group(theirs) or (None, [rank])
        axes[name] = Axis(
            name=name,
            size=len(members),
            index=members.index(rank),
            group=group if len(members) > 1 else None,
            traffic=traffic,
        )
    return axes


def _compare(fingerprints: Sequence[str]) -> None:
    """Every rank has read its own file, and machines may have different ones."""
    _refuse_if(
        [rank for rank, mine in enumerate(fingerprints) if mine != fingerprints[0]],
        "resolved another config than rank 0: the file, its overrides and the environment must be "
        "the same on every machine",
    )


def _refuse_if(ranks: Sequence[int], what: str) -> None:
    if ranks:
        raise Refused(f"{name_ranks(ranks)} {what}")


def _gpu_ids() -> list[str]:
    return [
        str(torch.cuda.get_device_properties(number).uuid)
        for number in range(torch.cuda.device_count())
    ]


def _set_timeouts(colossal: Colossal, seconds: float) -> None:
    """new_group takes torch's default, not the default group's own."""
    for group in colossal.groups():
        _set_pg_timeout(timedelta(seconds=seconds), group)


def _seed(seed: int) -> None:
    """The same on all ranks: what must differ between them has generators of its own. Colossal-AI's
    seed manager would ask torch.cuda, on CPU ranks too."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
