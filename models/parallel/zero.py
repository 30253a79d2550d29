"""ZeRO (Rajbhandari et al. 2020): the data axis is one more axis that cuts a weight.

So may any axis be along which there are copies, as along 2.5d's depth (``Mode.zero_axes``). A
weight's input dimension is cut by the mode's axes and then by ZeRO's, so parameter, gradient and
optimizer state of a rank are one piece, and the one rule for gradients, norms, clipping, boxes and
checkpoints hold as they are. The stages differ in when the pieces come together:

    stage   weight gathered                  gradient scattered
    1       once a step, and kept            once a step
    2       once a step, and kept            with every micro-batch
    3       at every use                     with every micro-batch

Kept weights are in the compute type. Biases, norms and positions are not cut. A weight may stay at
another device between steps (ZeRO-Offload, Ren et al. 2021): its pieces come together where it is
used, and its gradient goes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from models.parallel.collectives import Axis, Dim, gather, scatter

if TYPE_CHECKING:
    from models.parallel.context import ParallelContext


@dataclass(frozen=True, kw_only=True)
class Zero:
    """The stage, the axes that cut weights (slowest first), and what is held within a step.

    ``caches_shards``: in stage 3 a rank's own pieces, once fetched from where they stay between
    steps, are kept in the compute type; otherwise they are fetched at every use.
    """

    stage: int = 0
    axes: tuple[Axis, ...] = ()
    caches_shards: bool = False
    _cached_shards: dict[int, Tensor] = field(default_factory=dict)
    _deferred: dict[int, tuple[Tensor, WeightSharding, Tensor]] = field(default_factory=dict)

    def gather(self, weight: Tensor, sharding: WeightSharding, parallel: ParallelContext) -> Tensor:
        """What the rank would hold without ZeRO, in the compute type."""
        if self.stage == 0:
            return parallel.read(weight).to(parallel.device, parallel.compute)
        kept = self._cached_shards.get(id(weight))
        if kept is not None and self.stage < 3:
            return kept
        piece = (
            parallel.read(weight).to(parallel.device, parallel.compute) if kept is None else kept
        )
        whole = piece
        for axis, size in reversed(
            list(zip(self.axes, sharding.sizes_by_axis(self.axes), strict=True))
        ):
            whole = gather(whole, axis, sharding.dim).narrow(sharding.num_shards, 0, size)
        if self.stage < 3:
            self._cached_shards[id(weight)] = whole
        elif self.caches_shards and parallel.offload_device is not None:
            self._cached_shards[id(weight)] = piece
        return whole

    def scatter(self, weight: Tensor, gradient: Tensor, sharding: WeightSharding) -> Tensor | None:
        """The rank's piece of the summed gradient; None where the sum waits for the step's end."""
        if self.stage == 1 and self.axes:
            kept = self._deferred.get(id(weight))
            whole = gradient if kept is None else kept[2].add_(gradient)
            self._deferred[id(weight)] = weight, sharding, whole
            return None
        return self._scatter(gradient, sharding).to(weight.device)

    def _scatter(self, gradient: Tensor, sharding: WeightSharding) -> Tensor:
        for axis, size in zip(self.axes, sharding.sizes_by_axis(self.axes), strict=True):
            if axis.size == 1:
                continue  # a view of all of it could not be added to in place
            missing = -size % axis.size
            if missing:
                after = (0, missing) if sharding.dim == "H" else (0, 0, 0, missing)
                gradient = F.pad(gradient, after)
            gradient = scatter(gradient, axis, sharding.dim)
        return gradient

    def holds(self, weight: Tensor) -> bool:
        """Whether a gradient of ``weight`` waits for the end of the step."""
        return id(weight) in self._deferred

    def reduce_deferred(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights and the pieces of their gradients that were left for the end of the step."""
        while self._deferred:
            weight, sharding, gradient = self._deferred.pop(next(iter(self._deferred)))
            yield weight, self._scatter(gradient, sharding).to(weight.device)

    def clear_gathered(self) -> None:
        """Weights have changed: what was gathered of them is stale."""
        self._cached_shards.clear()


@dataclass(frozen=True, kw_only=True)
class WeightSharding:
    """How the pieces of a weight come together along its input dimension: the rows of w [in, out]
    (``T``) or the columns of a table [vocabulary, hidden] (``H``).

    ``inputs``: how many the rank would hold without ZeRO. ``axis``: the mode's own gather.
    """

    dim: Dim
    inputs: int
    axis: str | None

    @property
    def num_shards(self) -> int:
        return 0 if self.dim == "T" else 1

    def sizes_by_axis(self, axes: tuple[Axis, ...]) -> list[int]:
        """The inputs that are cut by each of ``axes`` in turn."""
        sizes = [self.inputs]
        for axis in axes:
            sizes.append(-(-sizes[-1] // axis.size))
        return sizes[:-1]

    def is_local(self, weight: Tensor, parallel: ParallelContext) -> bool:
        """Whether the rank holds all that it needs, where it needs it."""
        apart = parallel.zero.stage > 0 or parallel.axis(self.axis) is not None
        return not apart and weight.device == parallel.device

    def gather(self, weight: Tensor, parallel: ParallelContext) -> Tensor:
        """all_gather_b(w), cast before it travels: half the bytes in bf16."""
        return gather(
            parallel.zero.gather(weight, self, parallel), parallel.axis(self.axis), self.dim
        )

    def scatter(self, weight: Tensor, gradient: Tensor, parallel: ParallelContext) -> Tensor | None:
        """reduce_scatter_b(dw) in the parameter type; None where ZeRO puts it off."""
        gradient = scatter(gradient.to(weight.dtype), parallel.axis(self.axis), self.dim)
        return parallel.zero.scatter(weight, gradient, self)
