"""Inspects a config as ``cuboid train`` would run it on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from engine.errors import ConfigError, UserError
from engine.formatting import plural
from launch import torchrun
from launch.machine import Machine
from launch.preflight import checks_here
from launch.validate.alternatives import PlanRequest
from launch.validate.inspection import Inspection, inspect_config


def inspect_on(
    machine: Machine,
    request: PlanRequest,
    gpu_memory: int | None,
    *,
    enough: int,
    modes: bool = False,
) -> Inspection:
    """Inspect a config on the number of ranks that ``cuboid train`` would start, and add the
    problems of the machine.

    gpu_memory: bytes per rank; None: the rank's share of this machine's GPU memory.
    enough, modes: as for ``inspect_config``.
    """
    problems: list[str] = []
    try:
        one_copy = request.plan()
    except (ConfigError, UserError):
        return inspect_config(request)
    try:
        ranks = torchrun.ranks_to_start(one_copy.layout.gpus, machine.gpus, request.gpus)
    except UserError as error:
        problems.append(f"{request.path}: {error}")
        ranks = one_copy.layout.gpus
    gpu_memory = gpu_memory or machine.gpu_memory_for(ranks)
    inspection = inspect_config(
        replace(request, gpus=ranks),
        gpu_memory,
        device=machine.device,
        enough=enough,
        modes=modes,
    )
    if inspection.case is None:
        return inspection
    plan = inspection.case.plan
    checks = tuple(checks_here(plan, inspection.case.estimate, machine, request.environ))
    problems += [problem for check in checks for problem in check.problems]
    plan = replace(plan, notes=(*plan.notes, *_notes(machine, ranks)))
    return replace(
        inspection,
        problems=(*inspection.problems, *problems),
        case=replace(inspection.case, plan=plan, checks=checks),
    )


def _notes(machine: Machine, ranks: int) -> Iterator[str]:
    if 0 < machine.gpus < ranks:
        yield f"{ranks} ranks share {plural(machine.gpus, 'GPU')}, which is slow"
