"""ZeRO: stages, offloading, and what they go with."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from engine.config.rule_context import Finding, RuleContext
from models.parallel.registry import modes


def offloading_needs_its_stage(facts: RuleContext) -> Iterator[Finding]:
    """Only what ZeRO manages can be offloaded."""
    zero = facts.settings.zero
    for name, place, stage in (
        ("offload", zero.offload, 1),
        ("offload_params", zero.offload_params, 3),
    ):
        if place is not None and zero.stage < stage:
            needed = "3" if stage == 3 else "1, 2 or 3"
            yield facts.error(
                f"zero.{name}",
                f"{facts.cite(f'zero.{name}')} needs zero.stage={needed}, not "
                f"{facts.cite('zero.stage')}",
            )


def depth_needs_copies(facts: RuleContext) -> Iterator[Finding]:
    """What is shared out over depth is what 2.5d has copies of there."""
    zero = facts.settings.zero
    if not zero.depth:
        return
    if not zero.stage:
        yield facts.error(
            "zero.depth",
            f"{facts.cite('zero.depth')} needs zero.stage=1, 2 or 3, not "
            f"{facts.cite('zero.stage')}",
        )
    if facts.num_shards(*facts.mode.replicated) == 1:
        having = " or ".join(f"MODE={name!r}" for name, mode in modes().items() if mode.replicated)
        yield facts.error(
            "zero.depth",
            f"{facts.cite('zero.depth')} needs {having} with DEPTH above 1, not "
            f"{facts.cite('mode', 'depth')}",
        )


def nvme_needs_a_path(facts: RuleContext) -> Iterator[Finding]:
    """What goes to the disk goes to a folder."""
    zero = facts.settings.zero
    for name, place in (("offload", zero.offload), ("offload_params", zero.offload_params)):
        if place == "nvme" and zero.nvme_path is None:
            yield facts.error(
                f"zero.{name}",
                f"{facts.cite(f'zero.{name}')} needs zero.nvme_path, a folder on the NVMe disk",
            )


def states_go_with_weights(facts: RuleContext) -> Iterator[Finding]:
    """An optimizer updates weights on the disk there, beside its states."""
    zero = facts.settings.zero
    if zero.offload_params == "nvme" and zero.offload != "nvme":
        yield facts.error(
            "zero.offload",
            f"{facts.cite('zero.offload_params')} needs zero.offload='nvme', not "
            f"{facts.cite('zero.offload')}",
        )


def copies_come_back(facts: RuleContext) -> Iterator[Finding]:
    """An asynchronous checkpoint is written from a copy of everything."""
    settings = facts.settings
    if settings.zero.offload == "nvme" and settings.checkpoint.asynchronous:
        yield facts.warning(
            "checkpoint.asynchronous",
            f"{facts.cite('checkpoint.asynchronous')} copies into the host's memory what "
            f"{facts.cite('zero.offload')} keeps on the disk",
        )


def sharing_needs_copies(facts: RuleContext) -> Iterator[Finding]:
    """One rank has nobody to share with."""
    zero = facts.settings.zero
    if zero.stage and _sharers(facts) == 1:
        saves = "only offloading saves memory" if zero.offload else "nothing is saved"
        if facts.num_shards(*facts.mode.replicated) > 1:
            saves += f"; zero.depth=True shares over {facts.cite('depth')}"
        yield facts.note(
            "zero.stage",
            f"ZeRO of stage {zero.stage} on one data-parallel rank shares nothing out: {saves}",
        )


def gathering_per_micro_batch(facts: RuleContext) -> Iterator[Finding]:
    """Stage 3 gathers a stage's parameters anew for each micro-batch, forward and backward."""
    settings = facts.settings
    if settings.zero.stage == 3 and settings.pipeline > 1 and _sharers(facts) > 1:
        yield facts.note(
            "zero.stage",
            f"ZeRO of stage 3 with {facts.cite('pipeline')} gathers the parameters "
            f"{2 * settings.num_micro_batches} times a round, for "
            f"{facts.cite('num_micro_batches')}; stage 2 gathers them once",
        )


def _sharers(facts: RuleContext) -> int:
    """Ranks that share out a weight."""
    zero = facts.settings.zero
    axes = facts.mode.zero_axes(zero.stage, depth=zero.depth)
    return prod(facts.layout.axes[axis] for axis in axes)


RULES = (
    offloading_needs_its_stage,
    depth_needs_copies,
    nvme_needs_a_path,
    states_go_with_weights,
    copies_come_back,
    sharing_needs_copies,
    gathering_per_micro_batch,
)
