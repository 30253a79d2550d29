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

from engine.disk import FREE_SPACE_REMEDY, full_disk_error
from engine.errors import ConfigError, RunError, UserError
from engine.world.colossal import ColossalContext
from engine.world.compiler import compiler_failure, missing_compiler
from engine.world.coordination.control_plane import ControlPlane
from engine.world.coordination.launch_environment import LaunchInfo
from engine.world.coordination.liveness import RankProcess
from engine.world.devices import Assignment, VisibleGpus, assign_devices
from engine.world.network import wrong_interfaces
from engine.world.signals import StopSignal, catch_stop_signals, stop_with_parent, unblock_signals
from engine.world.world import World, raise_if_any
from models.parallel.collectives import Axis, Traffic

if TYPE_CHECKING:
    from engine.plan import Plan

T = TypeVar("T")

ERROR_REPORT_SECONDS = 60.0
"""How long ranks wait for each other where no plan could be made that says so."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """How a launch that was here before finds its plan. ``find_record``: the record of the run of
    a launch id, given the plan that was made now, if any; "" where there is none. ``plan`` makes
    the plan from it."""

    find_record: Callable[[str, Plan | None], str]
    plan: Callable[[str], Plan]


@contextmanager
def open_world(
    make_plan: Callable[[], Plan],
    launch_info: LaunchInfo,
    *,
    restart: Restart | None = None,
    backend: str | None = None,
    lost_pids_file: Path | None = None,
) -> Iterator[World]:
    """The world that ``launch_info`` is in, running as the plan says; ``backend`` goes before the
    plan's. A ``restart`` goes on with the plan that its run recorded, whatever the config holds by
    now. Processes of ranks that are told to be gone are noted in the file ``told``, one a line.

    On the way out, whatever ends it, all groups are closed. An error inside is told to the user
    once over all ranks.

    Raises:
        UserError: the plan, this machine or what is installed on it cannot be used. Told.
        RunError: for any other exception inside, or an interrupt. Told.
    """
    if launch_info.launch_id is not None and launch_info.launcher == "torchrun":
        stop_with_parent()
    colossal: ColossalContext | None = None
    failed = True
    with catch_stop_signals() as stop:
        ranks = ControlPlane(
            launch_info, stop_requested=lambda: stop.requested is not None, explain=_explain
        )
        try:
            unblock_signals()
            plan, problem = _try_plan(make_plan)
            ranks.connect(plan.settings.start_timeout if plan else ERROR_REPORT_SECONDS)
            if restart is not None:
                plan, problem = _plan_of_restart(restart, ranks, plan, problem)
            plan, colossal = ranks.run_on_all(
                lambda: _check_before_connecting(plan, problem, launch_info)
            )
            world = _open(plan, ranks, colossal, stop, backend)
            yield world
            world.barrier()  # a rank that closes its end may break what another still does
            failed = False
        except (Exception, KeyboardInterrupt) as caught:
            error = ranks.diagnose(caught)
            ranks.report(error, lost_pids_file)
            if isinstance(error, UserError | RunError):
                raise error from error.__cause__
            if isinstance(error, ConfigError):
                raise UserError(str(error)) from error
            raise RunError(f"{type(error).__name__}: {error}") from error
        finally:
            if colossal is not None:
                colossal.close(failed=failed)
            ranks.shutdown()


def _explain(error: BaseException) -> RunError | None:
    """Return a full disk's or a failing compiler's error in terms for users; None for any other."""
    return full_disk_error(error, FREE_SPACE_REMEDY) or compiler_failure(error)


def _try_plan(make_plan: Callable[[], Plan]) -> tuple[Plan | None, Exception | None]:
    """The plan, or why there is none: to be told when the ranks have met."""
    try:
        return make_plan(), None
    except Exception as error:
        return None, error


def _plan_of_restart(
    restart: Restart, ranks: ControlPlane, plan: Plan | None, problem: Exception | None
) -> tuple[Plan | None, Exception | None]:
    """The plan that the run recorded, where this launch has one; rank 0 looks it up for all."""
    record = ranks.run_on_rank_0(lambda: restart.find_record(ranks.run_id, plan))
    if not record:
        return plan, problem
    kept, problem = _try_plan(lambda: restart.plan(record))
    if kept is not None:
        ranks.set_timeout(kept.settings.start_timeout)
        if ranks.launch_info.rank == 0 and (plan is None or plan.fingerprint != kept.fingerprint):
            print(
                f"{kept.settings.source} or the environment has changed since the run began: it "
                "goes on with the settings that it recorded",
                flush=True,
            )
    return kept, problem


def _check_before_connecting(
    plan: Plan | None, problem: Exception | None, launch_info: LaunchInfo
) -> tuple[Plan, ColossalContext]:
    """What can be told before anything is opened."""
    if problem is not None:
        raise problem
    assert plan is not None
    if plan.layout.gpus != launch_info.size:
        raise UserError(
            f"{plan.settings.source}: the layout has {plan.layout.gpus} ranks, and "
            f"{launch_info.launcher} started {launch_info.size}"
        )
    return plan, ColossalContext()


def _open(
    plan: Plan,
    ranks: ControlPlane,
    colossal: ColossalContext,
    stop: StopSignal,
    asked: str | None,
) -> World:
    launch_info, settings = ranks.launch_info, plan.settings
    mine = [asdict(RankProcess.current()), _gpu_ids(), plan.fingerprint, ranks.run_id]
    reports = [json.loads(text) for text in ranks.all_gather(json.dumps(mine))]
    places, gpus, fingerprints, run_ids = zip(*reports, strict=True)
    processes = [RankProcess(**where) for where in places]
    ranks.start_liveness(processes)
    cards = [
        VisibleGpus(host=p.host, gpus=tuple(ids)) for p, ids in zip(processes, gpus, strict=True)
    ]

    def decide() -> Assignment:
        _require_same_plan(fingerprints)
        return assign_devices(cards, asked or settings.backend, nccl=dist.is_nccl_available())

    assignment = ranks.run_on_all(decide)
    ranks.run_on_all(lambda: _check_machine(plan, assignment))
    if launch_info.rank == 0:
        for warning in assignment.warnings:
            print(f"warning: {warning}", file=sys.stderr, flush=True)

    gpu = assignment.gpus[launch_info.rank]
    if gpu is not None:
        torch.cuda.set_device(gpu)
    dist.init_process_group(
        assignment.backend,
        store=ranks.store,
        rank=launch_info.rank,
        world_size=launch_info.size,
        timeout=timedelta(seconds=settings.start_timeout),
    )
    colossal.open(plan.layout, launch_info.rank)
    colossal.set_timeouts(settings.start_timeout)
    _seed(settings.seed)
    traffic = Traffic()
    return World(
        plan=plan,
        rank=launch_info.rank,
        size=launch_info.size,
        local_rank=assignment.local_ranks[launch_info.rank],
        local_size=assignment.local_sizes[launch_info.rank],
        device=torch.device("cpu") if gpu is None else torch.device("cuda", gpu),
        backend=assignment.backend,
        axes=_axes(plan, colossal, launch_info.rank, traffic),
        traffic=traffic,
        run_id=run_ids[0],
        attempt=launch_info.attempt,
        control_plane=ranks,
        stop=stop,
        colossal=colossal,
    )


def _check_machine(plan: Plan, assignment: Assignment) -> None:
    """Raises UserError where this machine lacks the network interfaces or the compiler to run."""
    missing = list(wrong_interfaces(os.environ))
    if assignment.gpus[0] is None:
        missing += missing_compiler(plan, os.environ)
    if missing:
        raise UserError("\n".join(missing))


def _axes(plan: Plan, colossal: ColossalContext, rank: int, traffic: Traffic) -> dict[str, Axis]:
    """Our axes on Colossal-AI's groups, by the names it has for them."""
    names = {
        "world": "GLOBAL",
        "data": "DATA",
        "pipeline": "PIPELINE",
        "model": "MODEL",
        "tensor": "TENSOR",
        **plan.layout.mode.colossal_groups,
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


def _require_same_plan(fingerprints: Sequence[str]) -> None:
    """Every rank has read its own file, and machines may have different ones."""
    raise_if_any(
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
