"""How many GPUs, and how tensor parallelism arranges them."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.rule_context import Finding, RuleContext
from engine.config.value_hints import nearest_multiples
from models.parallel.registry import modes, nearest_sizes


def tensor_parallel_needs_a_mode(facts: RuleContext) -> Iterator[Finding]:
    """Something must say how tensors are cut."""
    settings = facts.settings
    if settings.tensor_parallel > 1 and settings.mode == "serial":
        cutting = [repr(name) for name in modes() if name != "serial"]
        yield facts.error(
            "tensor_parallel",
            f"{facts.cite('tensor_parallel')} needs a MODE that cuts tensors "
            f"({', '.join(cutting)}), not {facts.cite('mode')}",
        )


def mode_takes_the_size(facts: RuleContext) -> Iterator[Finding]:
    """2d takes squares, 2.5d squares times DEPTH, 3d cubes."""
    settings, mode = facts.settings, facts.mode
    size, depth = settings.tensor_parallel, settings.depth
    if mode.name == "serial" or mode.axes(size, depth) is not None:
        return
    needing = (
        f"{facts.cite('mode')} with {facts.cite('depth')}"
        if mode.uses_depth
        else facts.cite("mode")
    )
    legal = ", ".join(map(str, nearest_sizes(mode, size, depth)))
    yield facts.error(
        "tensor_parallel",
        f"{facts.cite('tensor_parallel')} is not {mode.size_rule}, which {needing} needs; "
        f"nearest: {legal}",
    )


def depth_needs_its_mode(facts: RuleContext) -> Iterator[Finding]:
    """DEPTH says nothing to the modes that have none."""
    if facts.settings.depth > 1 and not facts.mode.uses_depth:
        using = " or ".join(f"MODE={name!r}" for name, mode in modes().items() if mode.uses_depth)
        yield facts.error(
            "depth", f"{facts.cite('depth')} is for {using}, not for {facts.cite('mode')}"
        )


def processes_hold_whole_copies(facts: RuleContext) -> Iterator[Finding]:
    """GPUS = TENSOR_PARALLEL x PIPELINE x DATA, and DATA is whole."""
    one, processes = facts.gpus_per_replica, facts.processes
    if processes is not None and processes % one:
        yield facts.error(
            "tensor_parallel",
            f"{processes} GPUs are not a multiple of {one}, which {facts.cite('tensor_parallel')} "
            f"x {facts.cite('pipeline')} need; nearest: {nearest_multiples(processes, one)}",
        )


RULES = (
    tensor_parallel_needs_a_mode,
    mode_takes_the_size,
    depth_needs_its_mode,
    processes_hold_whole_copies,
)
