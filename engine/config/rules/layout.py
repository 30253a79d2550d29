"""Rules for the number of GPUs and their arrangement by tensor parallelism."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.rule_context import Finding, RuleContext
from engine.config.value_hints import nearest_multiples
from models.parallel.registry import modes, nearest_sizes


def tensor_parallel_needs_a_mode(context: RuleContext) -> Iterator[Finding]:
    """Require a MODE other than 'serial' if TENSOR_PARALLEL is more than 1."""
    settings = context.settings
    if settings.tensor_parallel > 1 and settings.mode == "serial":
        parallel = [repr(name) for name in modes() if name != "serial"]
        yield context.error(
            "tensor_parallel",
            f"{context.cite('tensor_parallel')} needs a tensor-parallel MODE "
            f"({', '.join(parallel)}), not {context.cite('mode')}",
        )


def mode_accepts_the_size(context: RuleContext) -> Iterator[Finding]:
    """Require TENSOR_PARALLEL to fit MODE: a square in 2d, DEPTH times a square in 2.5d, a cube in
    3d."""
    settings, mode = context.settings, context.mode
    size, depth = settings.tensor_parallel, settings.depth
    if mode.name == "serial" or mode.axes(size, depth) is not None:
        return
    cause = context.cite("mode")
    if mode.uses_depth:
        cause += f" with {context.cite('depth')}"
    legal = ", ".join(map(str, nearest_sizes(mode, size, depth)))
    yield context.error(
        "tensor_parallel",
        f"{context.cite('tensor_parallel')} is not {mode.size_rule}, which {cause} needs; "
        f"nearest: {legal}",
    )


def depth_needs_its_mode(context: RuleContext) -> Iterator[Finding]:
    """Require DEPTH to be 1 in modes that do not use it."""
    if context.settings.depth > 1 and not context.mode.uses_depth:
        deep = " or ".join(f"MODE={name!r}" for name, mode in modes().items() if mode.uses_depth)
        yield context.error(
            "depth",
            f"{context.cite('depth')} needs {deep}, not {context.cite('mode')}; otherwise set "
            "DEPTH=1",
        )


def gpus_hold_whole_copies_of_the_model(context: RuleContext) -> Iterator[Finding]:
    """Require the GPUs to be a multiple of TENSOR_PARALLEL x PIPELINE; the quotient is the
    data-parallel size."""
    needed, gpus = context.gpus_per_model_copy, context.processes
    if gpus is not None and gpus % needed:
        yield context.error(
            "tensor_parallel",
            f"{gpus} GPUs are not a multiple of {needed}, one copy of the model "
            f"({context.cite('tensor_parallel')} x {context.cite('pipeline')}); "
            f"nearest: {nearest_multiples(gpus, needed)}",
        )


RULES = (
    tensor_parallel_needs_a_mode,
    mode_accepts_the_size,
    depth_needs_its_mode,
    gpus_hold_whole_copies_of_the_model,
)
