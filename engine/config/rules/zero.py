"""Rules for ZeRO: stages, offloading, and their requirements."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.rule_context import Finding, RuleContext
from engine.config.schema import user_name
from models.parallel.mode import Mode
from models.parallel.registry import modes


def offloading_needs_its_stage(context: RuleContext) -> Iterator[Finding]:
    """Require ZeRO stage 1, 2 or 3 for zero.offload, and stage 3 for zero.offload_params.

    Only state that ZeRO manages can be offloaded.
    """
    zero = context.settings.zero
    for name, target, stage in (
        ("offload", zero.offload, 1),
        ("offload_params", zero.offload_params, 3),
    ):
        if target is not None and zero.stage < stage:
            needed = "3" if stage == 3 else "1, 2 or 3"
            yield context.error(
                f"zero.{name}",
                f"{context.cite(f'zero.{name}')} needs zero.stage={needed}, not "
                f"{context.cite('zero.stage')}",
            )


def zero_depth_needs_replicas(context: RuleContext) -> Iterator[Finding]:
    """Require a ZeRO stage for zero.depth, and several ranks over which the mode replicates
    weights."""
    zero = context.settings.zero
    if not zero.depth:
        return
    if not zero.stage:
        yield context.error(
            "zero.depth",
            f"{context.cite('zero.depth')} needs zero.stage=1, 2 or 3, not "
            f"{context.cite('zero.stage')}",
        )
    if context.num_shards(*context.mode.replicated) == 1:
        having = " or ".join(
            f"MODE={name!r} with {user_name(_number_of_copies(mode))} above 1"
            for name, mode in modes().items()
            if mode.replicated
        )
        yield context.error(
            "zero.depth",
            f"{context.cite('zero.depth')} needs {having}, not "
            f"{context.cite('mode', _number_of_copies(context.mode))}",
        )


def nvme_needs_a_path(context: RuleContext) -> Iterator[Finding]:
    """Require zero.nvme_path for offloading to 'nvme'."""
    zero = context.settings.zero
    for name, target in (("offload", zero.offload), ("offload_params", zero.offload_params)):
        if target == "nvme" and zero.nvme_path is None:
            yield context.error(
                f"zero.{name}",
                f"{context.cite(f'zero.{name}')} needs a folder on the NVMe disk; set "
                "zero.nvme_path",
            )


def nvme_weights_need_nvme_states(context: RuleContext) -> Iterator[Finding]:
    """Require zero.offload='nvme' if zero.offload_params is: the optimizer updates weights on the
    disk together with their states."""
    zero = context.settings.zero
    if zero.offload_params == "nvme" and zero.offload != "nvme":
        yield context.error(
            "zero.offload",
            f"{context.cite('zero.offload_params')} needs zero.offload='nvme', not "
            f"{context.cite('zero.offload')}",
        )


def asynchronous_checkpoints_fit_in_memory(context: RuleContext) -> Iterator[Finding]:
    """Warn that checkpoint.asynchronous copies NVMe-offloaded state into host memory."""
    settings = context.settings
    if settings.zero.offload == "nvme" and settings.checkpoint.asynchronous:
        yield context.warning(
            "checkpoint.asynchronous",
            f"{context.cite('checkpoint.asynchronous')} copies the state offloaded by "
            f"{context.cite('zero.offload')} into host memory; if it does not fit, set "
            "checkpoint.asynchronous=False",
        )


def zero_needs_several_ranks(context: RuleContext) -> Iterator[Finding]:
    """Note that ZeRO shards nothing on one data-parallel rank."""
    zero = context.settings.zero
    if zero.stage and _zero_ranks(context) == 1:
        effect = "only offloading saves memory" if zero.offload else "no memory is saved"
        if context.num_shards(*context.mode.replicated) > 1:
            copies = context.cite(_number_of_copies(context.mode))
            effect += f"; to shard over {copies}, set zero.depth=True"
        yield context.note(
            "zero.stage",
            f"ZeRO stage {zero.stage} shards nothing on one data-parallel rank: {effect}",
        )


def stage_3_gathers_once(context: RuleContext) -> Iterator[Finding]:
    """Note that ZeRO stage 3 in a pipeline gathers parameters in each micro-batch, forward and
    backward."""
    settings = context.settings
    if settings.zero.stage == 3 and settings.pipeline > 1 and _zero_ranks(context) > 1:
        yield context.note(
            "zero.stage",
            f"ZeRO stage 3 with {context.cite('pipeline')} gathers the parameters twice per "
            f"micro-batch, {2 * settings.num_micro_batches} times with "
            f"{context.cite('num_micro_batches')}; stage 2 gathers them once per step",
        )


def _number_of_copies(mode: Mode) -> str:
    """Return the name of the setting that determines how many ranks have the same weights."""
    return "depth" if mode.uses_depth else "tensor_parallel"


def _zero_ranks(context: RuleContext) -> int:
    """Return the number of ranks that ZeRO shards a weight over."""
    zero = context.settings.zero
    axes = context.mode.zero_axes(zero.stage, depth=zero.depth)
    return context.layout.num_shards(axes)


RULES = (
    offloading_needs_its_stage,
    zero_depth_needs_replicas,
    nvme_needs_a_path,
    nvme_weights_need_nvme_states,
    asynchronous_checkpoints_fit_in_memory,
    zero_needs_several_ranks,
    stage_3_gathers_once,
)
