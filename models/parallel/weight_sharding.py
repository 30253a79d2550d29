"""Gathers a sharded weight for a matmul, and reduce-scatters the weight's gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.parallel.collectives import gather, scatter
from models.parallel.context import ParallelContext
from models.parallel.zero import InputSharding


@dataclass(frozen=True, kw_only=True)
class WeightSharding(InputSharding):
    """How a weight's input dimension is sharded: by ZeRO, and by the mode along ``axis``."""

    axis: str | None

    def is_local(self, weight: Tensor, parallel: ParallelContext) -> bool:
        """Return whether ``gather`` needs neither communication nor a copy to the device."""
        sharded = parallel.zero.stage > 0 or parallel.axis(self.axis) is not None
        return not sharded and weight.device == parallel.device

    def gather(self, weight: Tensor, parallel: ParallelContext) -> Tensor:
        """Gather the weight, cast to the compute type before it is sent: half the bytes in bf16."""
        return gather(
            parallel.zero.gather(weight, self, parallel), parallel.axis(self.axis), self.dim
        )

    def scatter(self, weight: Tensor, gradient: Tensor, parallel: ParallelContext) -> Tensor | None:
        """Reduce-scatter ``gradient`` in the weight's type; return None if ZeRO defers it."""
        gradient = scatter(gradient.to(weight.dtype), parallel.axis(self.axis), self.dim)
        return parallel.zero.scatter(weight, gradient, self)
