"""Compares all modes that can shard a config on its GPUs.

The pipeline is unchanged, and so is the global batch unless the data-parallel ranks of a mode need
a larger one. Micro-batches have the plan's size, or the nearest one that divides the batch of a
data-parallel rank and suits the mode.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ConfigError
from engine.estimate.estimate import estimate
from engine.estimate.local_shapes import DeviceType
from engine.estimate.result import Estimate
from engine.plan import Plan
from launch.validate.alternatives import PlanRequest
from launch.validate.search_layouts import on_gpus
from launch.validate.search_space import SearchSpace
from models.parallel.registry import modes


@dataclass(frozen=True, kw_only=True)
class ModeEstimate:
    """The estimate of one mode, tensor-parallel size and depth."""

    overrides: tuple[str, ...]
    """The settings that differ from the config's."""
    plan: Plan
    estimate: Estimate

    @property
    def memory(self) -> int:
        """Bytes of the fullest GPU."""
        return self.estimate.fullest.memory.total

    @property
    def sent(self) -> int:
        """Bytes that the busiest GPU sends in a step."""
        return sum(sent.bytes for sent in self.estimate.traffic)

    @property
    def padding(self) -> float:
        """The share of the work that is padding."""
        tokens = self.plan.micro_batch * self.plan.settings.seq_len
        return 1 - tokens / self.plan.row_order.rows


def compare_modes(
    request: PlanRequest, plan: Plan, *, device: DeviceType = "cuda"
) -> list[ModeEstimate]:
    """Estimate each legal mode, tensor-parallel size and depth on the plan's GPUs, sorted by mode,
    size and depth."""
    order = list(modes())

    def sort_key(space: SearchSpace) -> tuple[int, int, int]:
        layout = space.layout
        return order.index(layout.mode.name), layout.tensor, layout.depth

    rows = []
    for space in sorted(on_gpus(plan), key=sort_key):
        overrides = space.overrides((0,) * len(space.knobs))
        try:
            other = request.plan(overrides, plan.layout.gpus)
        except ConfigError:
            continue
        predicted = estimate(other, device=device)
        rows.append(ModeEstimate(overrides=overrides, plan=other, estimate=predicted))
    return rows
