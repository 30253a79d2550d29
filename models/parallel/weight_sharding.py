"""Gathers a weight for a product and reduce-scatters its gradient, by ZeRO and by the mode."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.parallel.collectives import gather, scatter
from models.parallel.context import ParallelContext
from models.parallel.zero import InputSharding


@dataclass(frozen=True, kw_only=True)
class WeightSharding(InputSharding):
    """Shards the input dimension of a weight by ZeRO and, along ``axis``, by the mode."""

    axis: str | None

    def is_local(self, weight: Tensor, parallel: ParallelContext) -> bool:
        """Return whether the rank has all of the weight that it needs, on its own device."""
        sharded = parallel.zero.stage > 0 or parallel.axis(self.axis) is not None
        return not sharded and weight.device == parallel.device

    def gather(self, weight: Tensor, parallel: ParallelContext) -> Tensor:
        """Return all_gather_axis(w), cast before it is sent: half the bytes in bf16."""
        return gather(
            parallel.zero.gather(weight, self, parallel), parallel.axis(self.axis), self.dim
        )

    def scatter(self, weight: Tensor, gradient: Tensor, parallel: ParallelContext) -> Tensor | None:
        """Return reduce_scatter_axis(dw) in the parameter's type; None if ZeRO defers it."""
        gradient = scatter(gradient.to(weight.dtype), parallel.axis(self.axis), self.dim)
        return parallel.zero.scatter(weight, gradient, self)
