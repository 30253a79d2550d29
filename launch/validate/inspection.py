"""What there is to say of a config: refused and why, or its plan and what that takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.errors import ConfigError, UserError
from engine.estimate.estimate import estimate
from engine.estimate.local_shapes import DeviceType
from engine.estimate.result import Estimate
from engine.formatting import format_bytes
from engine.plan import Plan
from launch.validate.alternatives import Alternative, Findings, PlanRequest, alternatives
from launch.validate.mode_comparison import ModeEstimate, compare_modes

ALTERNATIVES = 5


@dataclass(frozen=True, kw_only=True)
class MachineCheck:
    """A question to the machine at hand: its subject, the answer, and the problems it shows."""

    about: str
    finding: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EstimatedPlan:
    """A legal config: its plan, what that takes, and bytes of a GPU's memory, if they are known.
    ``checks`` are of the machine and ``modes`` a comparison, where they were asked for.

    ``alternatives`` would fit where this does not; if there are none, ``nearest`` miss by least.
    """

    plan: Plan
    estimate: Estimate
    gpu_memory: int | None = None
    alternatives: tuple[Alternative, ...] = ()
    nearest: tuple[Alternative, ...] = ()
    checks: tuple[MachineCheck, ...] = ()
    modes: tuple[ModeEstimate, ...] = ()

    @property
    def fits(self) -> bool | None:
        """Whether the fullest GPU holds its share; None where its size is not known."""
        if self.gpu_memory is None:
            return None
        return self.estimate.fullest.memory.total <= self.gpu_memory


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """``problems`` are reasons to refuse, a line each; ``case`` is None where there is no plan."""

    source: str
    problems: tuple[str, ...] = ()
    case: EstimatedPlan | None = None


def inspect_config(
    request: PlanRequest,
    gpu_memory: int | None = None,
    *,
    device: DeviceType = "cuda",
    enough: int = ALTERNATIVES,
    modes: bool = False,
) -> Inspection:
    """Read a config and judge it. What is wrong with it is in the result, never raised.

    ``enough``: how many alternatives are looked for where the config does not fit. ``modes``:
    whether the modes are compared.
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
    others = alternatives(request, plan, gpu_memory, enough=enough, device=device)
    case = replace(case, alternatives=others.fitting, nearest=others.nearest)
    problem = (
        f"{source}: {too_large(case.estimate, gpu_memory)}; {_remedy(plan, gpu_memory, others)}"
    )
    return Inspection(source=source, problems=(problem,), case=case)


def too_large(found: Estimate, limit: int) -> str:
    """That the fullest GPU takes more than the ``limit`` of bytes it has."""
    fullest = found.fullest
    where = f"stage {fullest.stage}" if len(found.stages) > 1 else "the model"
    return (
        f"{where} takes {format_bytes(fullest.memory.total)} of a GPU, which has "
        f"{format_bytes(limit)}"
    )


def _remedy(plan: Plan, gpu_memory: int, found: Findings) -> str:
    """The mildest change that fits, or all that was tried and by how much the best of it misses."""
    if found.fitting:
        best = found.fitting[0]
        return f"{format_bytes(best.estimate.fullest.memory.total)} with {best.command_words(plan)}"
    if not found.nearest:
        return f"nothing fits ({found.tried})"
    best = found.nearest[0]
    size = best.estimate.fullest.memory.total
    return (
        f"nothing fits ({found.tried}); nearest: {format_bytes(size)}, "
        f"{format_bytes(size - gpu_memory)} too much, with {best.command_words(plan)}"
    )
