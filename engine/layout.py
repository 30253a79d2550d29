"""Ranks, their coordinates, groups and shards. Pure Python.

The order of ranks is Colossal-AI's, tensor fastest, then pipeline, then data:
``rank = (data * PIPELINE + pipeline) * TENSOR_PARALLEL + tensor``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from models.parallel.mode import Mode
from models.parallel.rows import RowOrder
from models.parallel.shard import PartitionSpec, Shard, shard_of


@dataclass(frozen=True, kw_only=True)
class Layout:
    """GPUS = TENSOR_PARALLEL x PIPELINE x DATA ranks on named axes."""

    mode: Mode
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    depth: int = 1

    def __post_init__(self) -> None:
        assert self.mode.axes(self.tensor, self.depth) is not None, f"illegal layout {self}"

    @property
    def gpus(self) -> int:
        """Return the number of ranks."""
        return self.tensor * self.pipeline * self.data

    @cached_property
    def tensor_axes(self) -> dict[str, int]:
        """Return the size of each axis of the mode; ranks vary slowest along the first axis."""
        axes = self.mode.axes(self.tensor, self.depth)
        assert axes is not None
        return axes

    @cached_property
    def axes(self) -> dict[str, int]:
        """Return the size of each axis; ranks vary slowest along the first axis."""
        return {"data": self.data, "pipeline": self.pipeline, **self.tensor_axes}

    def coordinates(self, rank: int) -> dict[str, int]:
        """Return the rank's index on every axis."""
        assert 0 <= rank < self.gpus, f"rank {rank} of {self.gpus}"
        index = {}
        for axis, size in reversed(self.axes.items()):
            rank, index[axis] = divmod(rank, size)
        return {axis: index[axis] for axis in self.axes}

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """Return the rank at ``coordinates``."""
        rank = 0
        for axis, size in self.axes.items():
            rank = rank * size + coordinates[axis]
        return rank

    def groups(self, *axes: str) -> list[list[int]]:
        """Return the groups of ranks that differ only along ``axes``. Ranks ascend within a group,
        and groups by their first rank."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.gpus):
            fixed = tuple(n for axis, n in self.coordinates(rank).items() if axis not in axes)
            groups.setdefault(fixed, []).append(rank)
        return list(groups.values())

    def shard(self, shape: tuple[int, ...], spec: PartitionSpec, rank: int) -> Shard:
        """Return the shard that ``rank`` holds of a parameter of global ``shape``."""
        return shard_of(shape, spec, self.axes, self.coordinates(rank))

    def num_shards(self, axes: Iterable[str]) -> int:
        """Return the number of shards of a dimension that is sharded over ``axes``."""
        return prod(self.axes[axis] for axis in axes)

    def row_order(self, samples: int, seq_len: int) -> RowOrder:
        """Return the order of the rows of a micro-batch, padding included."""
        return RowOrder.of(self.mode, self.axes, samples * seq_len, seq_len)
