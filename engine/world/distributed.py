"""From a plan to a running world: process groups, device, seeds, and a clean leave."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy
import torch
import torch.distributed as dist

from engine.config.errors import ConfigError
from engine.errors import Failed, Refused
from engine.world.colossal import Colossal
from engine.world.compiler import missing_compiler
from engine.world.coordination.control_plane import Ranks
from engine.world.coordination.liveness import Process
from engine.world.devices import Assignment, Card, assign
from engine.world.launch_environment import Place
from engine.world.network import wrong_interfaces
from engine.world.signals import release_signals, stop_signal, stop_with_parent
from engine.world.world import World, refuse_if
from models.parallel.collectives import Axis, Traffic

if TYPE_CHECKING:
    from engine.plan import Plan

T = TypeVar("T")

REFUSAL_SECONDS = 60.0
"""How long ranks wait for each other where no plan could be made that says so."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """How a launch that was here before finds its plan. ``find``: the record of the run of a launch
    id, given the plan that was made now, if any; "" where there is none. ``plan`` makes the plan
    from it."""

    find: Callable[[str, Plan | None], str]
    plan: Callable[[str], Plan]


@contextmanager
def open_world(
    make_plan: Callable[[], Plan],
    place: Place,
    *,
    restart: Restart | None = None,
    backend: str | None = None,
    told: Path | None = None,
) -> Iterator[World]:
    """The world that ``place`` is in, running as the plan says; ``backend`` goes before the plan's.
    A ``restart`` goes on with the plan that its run recorded, whatever the config holds by now.
    Processes of ranks that are told to be gone are noted in the file ``told``, one a line.

    On the way out, whatever ends it, all groups are closed. An error inside is told to the user
    once over all ranks.

    Raises:
        Refused: the plan, this machine or what is installed on it cannot be used. Told.
        Failed: for any other exception inside, or an interrupt. Told.
    """
    if place.launch is not None and place.launcher == "torchrun":
        stop_with_parent()
    colossal: Colossal | None = None
    failed = True
    with stop_signal() as stop:
        ranks = Ranks(place, stop)
        try:
            release_signals()
            plan, problem = _attempt(make_plan)
            ranks.meet(plan.settings.start_timeout if plan else REFUSAL_SECONDS)
            if restart is not None:
                plan, problem = _recorded(restart, ranks, plan, problem)
            plan, colossal = ranks.agree(lambda: _check(plan, problem, place))
            world = _open(plan, ranks, colossal, backend)
            yield world
            world.meet()  # a rank that closes its end may break what another still does
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


def _recorded(
    restart: Restart, ranks: Ranks, plan: Plan | None, problem: Exception | None
) -> tuple[Plan | None, Exception | None]:
    """The plan that the run recorded, where this launch has one; rank 0 looks it up for all."""
    record = ranks.share(lambda: restart.find(ranks.run_id, plan))
    if not record:
        return plan, problem
    kept, problem = _attempt(lambda: restart.plan(record))
    if kept is not None:
        ranks.allow(kept.settings.start_timeout)
        if ranks.place.rank == 0 and (plan is None or plan.fingerprint != kept.fingerprint):
            print(
                f"{kept.settings.source} or the environment has changed since the run began: it "
                "goes on with the settings that it recorded",
                flush=True,
            )
    return kept, problem


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
    ranks.agree(lambda: _refuse_missing(plan, assignment))
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
    colossal.set_timeouts(settings.start_timeout)
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


def _refuse_missing(plan: Plan, assignment: Assignment) -> None:
    """Raises Refused where this machine lacks the network interfaces or the compiler to run."""
    missing = list(wrong_interfaces(os.environ))
    if assignment.gpus[0] is None:
        missing += missing_compiler(plan, os.environ)
    if missing:
        raise Refused("\n".join(missing))


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
    refuse_if(
        [rank for rank, mine in enumerate(fingerprints) if mine != fingerprints[0]],
        "resolved another config than rank 0: the file, its overrides and the environment must be "
        "the same on every machine",
    )


def _gpu_ids() -> list[str]:
    return [
        str(torch.cuda.get_device_properties(number).uuid)
        for number in range(torch.cuda.device_count())
    ]


def _seed(seed: int) -> None:
    """The same on all ranks: what must differ between them has generators of its own. Colossal-AI's
    seed manager would ask torch.cuda, on CPU ranks too."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
