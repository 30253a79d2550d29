"""Start and shutdown of a world: process groups, devices, seeds."""

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

from engine.errors import ConfigError, RunError, UserError
from engine.files.full_disk import FREE_SPACE_REMEDY, full_disk_error
from engine.world.colossal import ColossalContext
from engine.world.compiler import compiler_failure, missing_compiler
from engine.world.coordination.control_plane import ControlPlane
from engine.world.coordination.launch_environment import LaunchInfo
from engine.world.coordination.liveness import RankProcess
from engine.world.devices import DeviceAssignment, VisibleGpus, assign_devices
from engine.world.network import wrong_interfaces
from engine.world.signals import StopSignal, catch_stop_signals, stop_with_parent, unblock_signals
from engine.world.world import World, raise_if_any
from models.parallel.clock import clock_of
from models.parallel.collectives import Axis, Traffic
from models.parallel.compilation import axes_of_compiled_code

if TYPE_CHECKING:
    from engine.plan import Plan

T = TypeVar("T")

ERROR_REPORT_SECONDS = 60.0
"""Timeout of the start if there is no plan, which would state one."""


@dataclass(frozen=True, kw_only=True)
class RestartCallbacks:
    """Functions by which a restarted launch finds the plan that its run has recorded."""

    find_record: Callable[[str, Plan | None], str]
    """Returns the record of the run with this id, or ''; the plan is that of the config now, None
    if the config is invalid."""
    plan: Callable[[str], Plan]
    """Makes the plan from the record."""


@contextmanager
def open_world(
    make_plan: Callable[[], Plan],
    launch_info: LaunchInfo,
    *,
    restart: RestartCallbacks | None = None,
    backend: str | None = None,
    lost_pids_file: Path | None = None,
) -> Iterator[World]:
    """Connect the ranks of a launch, open their process groups, and close them at the end.

    An error in the ``with`` block is printed by one rank only.

    Args:
        backend: overrides the backend of the plan.
        restart: a restarted launch resumes with the plan that its run recorded, even if the config
            has changed.
        lost_pids_file: gets the PIDs of lost ranks, one per line.

    Raises:
        UserError: the plan, this machine or an installed package cannot be used.
        RunError: any other exception in the ``with`` block, or an interrupt.
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
            with axes_of_compiled_code(world.axes):
                yield world
            world.barrier()  # closing a connection may break an operation of another rank
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
    """Translate ``error`` into a message for users if a disk is full or a compiler failed; return
    None for any other error."""
    return full_disk_error(error, FREE_SPACE_REMEDY) or compiler_failure(error)


def _try_plan(make_plan: Callable[[], Plan]) -> tuple[Plan | None, Exception | None]:
    """Make the plan, and return it or the error, which is reported once the ranks are connected."""
    try:
        return make_plan(), None
    except Exception as error:
        return None, error


def _plan_of_restart(
    restart: RestartCallbacks, ranks: ControlPlane, plan: Plan | None, problem: Exception | None
) -> tuple[Plan | None, Exception | None]:
    """Replace ``plan`` by the recorded plan if an earlier attempt of this launch began a run; rank
    0 reads the record."""
    record = ranks.run_on_rank_0(lambda: restart.find_record(ranks.run_id, plan))
    if not record:
        return plan, problem
    recorded, problem = _try_plan(lambda: restart.plan(record))
    if recorded is not None:
        ranks.set_timeout(recorded.settings.start_timeout)
        size = recorded.settings.model.vocab_size
        is_new = plan is None or plan.with_vocabulary(size).fingerprint != recorded.fingerprint
        if ranks.launch_info.rank == 0 and is_new:
            print(
                f"{recorded.settings.source} or the environment has changed since the run began: "
                "the run resumes with its recorded settings",
                flush=True,
            )
    return recorded, problem


def _check_before_connecting(
    plan: Plan | None, problem: Exception | None, launch_info: LaunchInfo
) -> tuple[Plan, ColossalContext]:
    """Raise ``problem``, the error of the plan, if any. Require as many ranks as the layout has,
    and Colossal-AI."""
    if problem is not None:
        raise problem
    assert plan is not None
    if plan.layout.gpus != launch_info.size:
        raise UserError(
            f"{plan.settings.source}: the layout has {plan.layout.gpus} ranks, but "
            f"{launch_info.size} were started ({launch_info.launcher}); start "
            f"{plan.layout.gpus} ranks"
        )
    return plan, ColossalContext()


def _open(
    plan: Plan,
    ranks: ControlPlane,
    colossal: ColossalContext,
    stop: StopSignal,
    backend: str | None,
) -> World:
    """Assign devices, and open the process groups; ``backend`` overrides the plan's backend."""
    launch_info, settings = ranks.launch_info, plan.settings
    report = [asdict(RankProcess.current()), _gpu_ids(), plan.fingerprint, ranks.run_id]
    reports = [json.loads(text) for text in ranks.all_gather(json.dumps(report))]
    identities, gpus, fingerprints, run_ids = zip(*reports, strict=True)
    processes = [RankProcess(**identity) for identity in identities]
    ranks.start_liveness(processes)
    visible = [
        VisibleGpus(host=p.host, gpus=tuple(ids)) for p, ids in zip(processes, gpus, strict=True)
    ]

    def decide() -> DeviceAssignment:
        _require_same_plan(fingerprints)
        return assign_devices(visible, backend or settings.backend, nccl=dist.is_nccl_available())

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
    device = torch.device("cpu") if gpu is None else torch.device("cuda", gpu)
    traffic = Traffic(clock=clock_of(device))
    return World(
        plan=plan,
        rank=launch_info.rank,
        size=launch_info.size,
        local_rank=assignment.local_ranks[launch_info.rank],
        local_size=assignment.local_sizes[launch_info.rank],
        device=device,
        backend=assignment.backend,
        axes=_axes(plan, colossal, launch_info.rank, traffic),
        traffic=traffic,
        run_id=run_ids[0],
        attempt=launch_info.attempt,
        control_plane=ranks,
        stop=stop,
        colossal=colossal,
    )


def _check_machine(plan: Plan, assignment: DeviceAssignment) -> None:
    """Raise UserError if this machine lacks a network interface that the environment names, or a
    compiler that ``plan`` needs."""
    missing = list(wrong_interfaces(os.environ))
    if assignment.gpus[0] is None:
        missing += missing_compiler(plan, os.environ)
    if missing:
        raise UserError("\n".join(missing))


def _axes(plan: Plan, colossal: ColossalContext, rank: int, traffic: Traffic) -> dict[str, Axis]:
    """Make the axes of the plan's layout on Colossal-AI's groups."""
    names = {
        "world": "GLOBAL",
        "data": "DATA",
        "pipeline": "PIPELINE",
        "tensor": "TENSOR",
        **plan.layout.mode.colossal_groups,
    }
    axes = {}
    for name, colossal_name in names.items():
        group, members = colossal.group(colossal_name) or (None, [rank])
        axes[name] = Axis(
            name=name,
            size=len(members),
            index=members.index(rank),
            group=group if len(members) > 1 else None,
            traffic=traffic,
        )
    return axes


def _require_same_plan(fingerprints: Sequence[str]) -> None:
    """Raise UserError if a rank has another plan than rank 0: each rank reads the config file of
    its own machine."""
    raise_if_any(
        [rank for rank, other in enumerate(fingerprints) if other != fingerprints[0]],
        "resolved another config than rank 0: the file, its overrides and the environment must be "
        "the same on every machine",
    )


def _gpu_ids() -> list[str]:
    """Return the UUIDs of the GPUs that this process sees."""
    return [
        str(torch.cuda.get_device_properties(number).uuid)
        for number in range(torch.cuda.device_count())
    ]


def _seed(seed: int) -> None:
    """Seed the global random generators, equally on all ranks; code that needs different random
    numbers per rank has generators of its own. Colossal-AI's seed manager is not used: it calls
    CUDA on CPU ranks, too."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
