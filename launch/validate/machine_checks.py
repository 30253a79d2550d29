"""A config held against the machine at hand, as ``cuboid train`` would run it there."""

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
    """Like ``inspect_config``, on as many ranks as would be started, each with the memory it would
    have unless ``gpu_memory`` says otherwise; further problems are the machine's."""
    problems: list[str] = []
    try:
        one = request.plan()
    except (ConfigError, UserError):
        return inspect_config(request)
    try:
        ranks = torchrun.processes(one.layout.gpus, machine.gpus, request.gpus)
    except UserError as error:
        problems.append(f"{request.path}: {error}")
        ranks = one.layout.gpus
    gpu_memory = gpu_memory or machine.gpu_memory_for(ranks)
    asked = replace(request, gpus=ranks)
    found = inspect_config(asked, gpu_memory, device=machine.device, enough=enough, modes=modes)
    if found.case is None:
        return found
    plan, taken = found.case.plan, found.case.estimate
    checks = tuple(checks_here(plan, taken, machine, request.environ))
    problems += [problem for check in checks for problem in check.problems]
    plan = replace(plan, notes=(*plan.notes, *_notes(machine, ranks)))
    return replace(
        found,
        problems=(*found.problems, *problems),
        case=replace(found.case, plan=plan, checks=checks),
    )


def _notes(machine: Machine, ranks: int) -> Iterator[str]:
    if 0 < machine.gpus < ranks:
        yield f"{ranks} ranks share {plural(machine.gpus, 'GPU')}, which is slow"
