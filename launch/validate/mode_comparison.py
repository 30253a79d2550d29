"""Every mode that can split the tensors of a config on its GPUs, side by side.

The pipeline stays as it is, and so does the global batch, unless the data-parallel ranks of a mode
need a larger one. Micro-batches are the plan's, or the nearest
size that the batch of a data-parallel rank and the mode divide into.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ConfigError
from engine.estimate.estimate import estimate
from engine.estimate.local_shapes import DeviceType
from engine.estimate.result import Estimate
from engine.plan import Plan
from launch.validate.alternatives import PlanRequest
from launch.validate.candidates import Space, on_gpus
from models.parallel.registry import modes


@dataclass(frozen=True, kw_only=True)
class ModeEstimate:
    """One mode, size and depth: the overrides that make it, its plan and the estimate of that."""

    overrides: tuple[str, ...]
    plan: Plan
    estimate: Estimate

    @property
    def memory(self) -> int:
        """Bytes of the fullest GPU."""
        return self.estimate.fullest.memory.total

    @property
    def sent(self) -> int:
        """Bytes that the GPU that sends the most sends in a step."""
        return sum(sent.bytes for sent in self.estimate.traffic)

    @property
    def padding(self) -> float:
        """The share of the work that is padding."""
        return 1 - self.plan.micro_batch / self.plan.padded_micro_batch


def compare_modes(
    request: PlanRequest, plan: Plan, *, device: DeviceType = "cuda"
) -> list[ModeEstimate]:
    """Estimate each legal mode, tensor-parallel size and depth on the plan's GPUs: by mode, then by
    size and depth."""
    order = list(modes())

    def place(space: Space) -> tuple[int, int, int]:
        layout = space.layout
        return order.index(layout.mode.name), layout.tensor, layout.depth

    rows = []
    for space in sorted(on_gpus(plan), key=place):
        overrides = space.overrides((0,) * len(space.knobs))
        try:
            other = request.plan(overrides, plan.layout.gpus)
        except ConfigError:
            continue
        found = estimate(other, device=device)
        rows.append(ModeEstimate(overrides=overrides, plan=other, estimate=found))
    return rows
