"""ZeRO (Rajbhandari et al. 2020): the data axis is one more axis that shards a weight.

Any axis along which the mode replicates weights may shard them too: 2.5d's depth, the axis of
``sequence`` (``Mode.zero_axes``). A weight's input dimension is sharded by the mode's axes and then
by ZeRO's axes. Parameter, gradient and optimizer state of a rank are therefore equal shards, and
the rules for gradients, norms, clipping and checkpoints need no case for ZeRO. The stages differ in
when the collectives run:

    stage   weight gathered                  gradient scattered
    1       once a step, then cached         once a step
    2       once a step, then cached         with every micro-batch
    3       at every use                     with every micro-batch

Cached weights are in the compute type. Biases, norms and positions are not sharded. A weight may be
stored on another device between steps (ZeRO-Offload, Ren et al. 2021): its shards are gathered on
the device that computes, and its gradient is copied back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.parallel.collectives import Axis, Dim, gather, scatter
from models.parallel.shard import shard_sizes


@dataclass(frozen=True, kw_only=True)
class InputSharding:
    """Describes the input dimension of a weight, which ZeRO shards: the rows of w [in, out]
    (``T``) or the columns of an embedding table [vocabulary, hidden] (``H``)."""

    dim: Dim

    inputs: int
    """Size of the dimension on this rank without ZeRO."""

    @property
    def dim_index(self) -> int:
        return 0 if self.dim == "T" else 1

    def sizes_by_axis(self, axes: tuple[Axis, ...]) -> list[int]:
        """Return the size of the dimension before each of ``axes`` in turn shards it."""
        return [self.inputs, *shard_sizes(self.inputs, [axis.size for axis in axes])][:-1]


class ShardReader(Protocol):
    """Reads a rank's own shards of weights, for computation on ``device`` in type ``compute``."""

    @property
    def device(self) -> torch.device: ...

    @property
    def compute(self) -> torch.dtype: ...

    @property
    def offload_device(self) -> torch.device | None: ...

    def read(self, weight: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class _AccumulatedGradient:
    """A gradient that is summed over the micro-batches of a step and then reduce-scattered."""

    weight: Tensor
    sharding: InputSharding
    total: Tensor


class Zero:
    """Gathers sharded weights and reduce-scatters their gradients, as the stage demands.

    ``axes``: the axes that shard weights, slowest first. ``caches_shards``: in stage 3 a rank's own
    shards, once read from the offload device, are cached in the compute type until the weights
    change; otherwise they are read at every use.
    """

    def __init__(
        self, *, stage: int = 0, axes: tuple[Axis, ...] = (), caches_shards: bool = False
    ) -> None:
        self.stage, self.axes, self.caches_shards = stage, axes, caches_shards
        self._cached: dict[int, Tensor] = {}
        self._accumulated: dict[int, _AccumulatedGradient] = {}

    def gather(self, weight: Tensor, sharding: InputSharding, reader: ShardReader) -> Tensor:
        """Return the weight as the rank would hold it without ZeRO, in the compute type."""
        if self.stage == 0:
            return reader.read(weight).to(reader.device, reader.compute)
        cached = self._cached.get(id(weight))
        if cached is not None and self.stage < 3:
            return cached
        shard = cached
        if shard is None:
            shard = reader.read(weight).to(reader.device, reader.compute)
        gathered = shard
        sizes = sharding.sizes_by_axis(self.axes)
        for axis, size in reversed(list(zip(self.axes, sizes, strict=True))):
            gathered = gather(gathered, axis, sharding.dim).narrow(sharding.dim_index, 0, size)
        if self.stage < 3:
            self._cached[id(weight)] = gathered
        elif self.caches_shards and reader.offload_device is not None:
            self._cached[id(weight)] = shard
        return gathered

    def scatter(self, weight: Tensor, gradient: Tensor, sharding: InputSharding) -> Tensor | None:
        """Reduce-scatter the gradient and return the rank's shard of the sum.

        In stage 1 add it to the gradients of earlier micro-batches and return None:
        ``reduce_accumulated`` yields the shard at the end of the step.
        """
        if self.stage == 1 and self.axes:
            earlier = self._accumulated.get(id(weight))
            total = gradient if earlier is None else earlier.total.add_(gradient)
            self._accumulated[id(weight)] = _AccumulatedGradient(
                weight=weight, sharding=sharding, total=total
            )
            return None
        return self._scatter(gradient, sharding).to(weight.device)

    def _scatter(self, gradient: Tensor, sharding: InputSharding) -> Tensor:
        for axis, size in zip(self.axes, sharding.sizes_by_axis(self.axes), strict=True):
            if axis.size == 1:
                continue  # scatter would return a view, which cannot be added to in place
            missing = -size % axis.size
            if missing:
                after = (0, missing) if sharding.dim == "H" else (0, 0, 0, missing)
                gradient = F.pad(gradient, after)
            gradient = scatter(gradient, axis, sharding.dim)
        return gradient

    def accumulates(self, weight: Tensor) -> bool:
        """Return whether a gradient of ``weight`` is accumulated until the end of the step."""
        return id(weight) in self._accumulated

    def reduce_accumulated(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Reduce-scatter the accumulated gradients; yield each weight and its shard of the sum."""
        while self._accumulated:
            gradient = self._accumulated.pop(next(iter(self._accumulated)))
            shard = self._scatter(gradient.total, gradient.sharding)
            yield gradient.weight, shard.to(gradient.weight.device)

    def clear_gathered(self) -> None:
        """Discard cached weights, which are stale once the optimizer has changed the weights."""
        self._cached.clear()
