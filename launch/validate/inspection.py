"""Inspects a config: its problems, or its plan, its estimate and alternatives that fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.errors import ConfigError, UserError
from engine.estimate.estimate import estimate
from engine.estimate.local_shapes import DeviceType
from engine.estimate.result import Estimate
from engine.formatting import format_bytes
from engine.plan import Plan
from launch.validate.alternatives import Alternative, PlanRequest, SearchResult, alternatives
from launch.validate.mode_comparison import ModeEstimate, compare_modes

ALTERNATIVES = 5


@dataclass(frozen=True, kw_only=True)
class MachineCheck:
    """The result of one check of this machine."""

    about: str
    """The subject, such as 'memory'."""
    finding: str
    """The result, in a few words."""
    problems: tuple[str, ...] = ()
    """One message per reason to reject the run."""


@dataclass(frozen=True, kw_only=True)
class EstimatedPlan:
    """A legal config with its plan and estimate."""

    plan: Plan
    estimate: Estimate
    gpu_memory: int | None = None
    """Bytes per GPU, None if unknown."""
    alternatives: tuple[Alternative, ...] = ()
    """Changes that fit, if the config does not."""
    nearest: tuple[Alternative, ...] = ()
    """If no change fits: the changes that exceed the memory least."""
    checks: tuple[MachineCheck, ...] = ()
    """The checks of this machine, if requested."""
    modes: tuple[ModeEstimate, ...] = ()
    """The comparison of modes, if requested."""

    @property
    def fits(self) -> bool | None:
        """True if the fullest GPU has enough memory; None if its memory is unknown."""
        if self.gpu_memory is None:
            return None
        return self.estimate.fullest.memory.total <= self.gpu_memory


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The result of an inspection."""

    source: str
    """The path of the config."""
    problems: tuple[str, ...] = ()
    """One message per reason to reject the config."""
    case: EstimatedPlan | None = None
    """The plan and its estimate; None if the config has no valid plan."""


def inspect_config(
    request: PlanRequest,
    gpu_memory: int | None = None,
    *,
    device: DeviceType = "cuda",
    enough: int = ALTERNATIVES,
    modes: bool = False,
) -> Inspection:
    """Read a config, plan it and estimate it. Its problems are returned, never raised.

    gpu_memory: bytes per GPU; None: unknown, the config is accepted at any size.
    enough: number of alternatives to search for if the config does not fit.
    modes: whether to compare the modes.
    """
    source = str(request.path)
    try:
        plan = request.plan()
    except ConfigError as error:
        return Inspection(source=source, problems=tuple(map(str, error.problems)))
    except UserError as error:
        return Inspection(source=source, problems=(str(error),))
    case = EstimatedPlan(plan=plan, estimate=estimate(plan, device=device), gpu_memory=gpu_memory)
    if modes:
        case = replace(case, modes=tuple(compare_modes(request, plan, device=device)))
    if gpu_memory is None or case.fits:
        return Inspection(source=source, case=case)
    findings = alternatives(request, plan, gpu_memory, enough=enough, device=device)
    case = replace(case, alternatives=findings.fitting, nearest=findings.nearest)
    problem = (
        f"{source}: {too_large(case.estimate, gpu_memory)}; {_remedy(plan, gpu_memory, findings)}"
    )
    return Inspection(source=source, problems=(problem,), case=case)


def too_large(predicted: Estimate, limit: int) -> str:
    """Format the message that the fullest GPU needs more memory than its ``limit`` bytes."""
    fullest = predicted.fullest
    where = f"stage {fullest.stage}" if len(predicted.stages) > 1 else "the model"
    return (
        f"{where} needs {format_bytes(fullest.memory.total)} per GPU, which has "
        f"{format_bytes(limit)}"
    )


def _remedy(plan: Plan, gpu_memory: int, findings: SearchResult) -> str:
    """Describe the mildest change that fits; if none fits, the changes tried and the nearest
    miss."""
    if findings.fitting:
        best = findings.fitting[0]
        return f"{format_bytes(best.estimate.fullest.memory.total)} with {best.command_words(plan)}"
    if not findings.nearest:
        return f"nothing fits ({findings.tried})"
    best = findings.nearest[0]
    size = best.estimate.fullest.memory.total
    return (
        f"nothing fits ({findings.tried}); nearest: {format_bytes(size)}, "
        f"{format_bytes(size - gpu_memory)} too much, with {best.command_words(plan)}"
    )
