"""The position of a local tensor in its global parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

PartitionSpec = tuple[tuple[str, ...], ...]
"""Per dimension of a parameter: the axes that shard it, slowest first; ``()`` if none does."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One rank's shard of a parameter."""

    shape: tuple[int, ...]
    """Shape of the global tensor, without padding."""
    offset: tuple[int, ...]
    """First global index of the shard in each dimension."""
    size: tuple[int, ...]
    """Shape of the shard without padding."""
    local: tuple[int, ...]
    """Shape of the tensor on the rank: ``size``, padded at the end so that all ranks have equal
    shapes (only where a dimension does not divide, such as an odd vocabulary over two ranks) and,
    in a token table, so that the number of rows suits the device. Padding is zero and is never
    saved, counted, clipped or sampled."""
    spec: PartitionSpec
    """The axes that shard each dimension."""

    @property
    def slices(self) -> tuple[slice, ...]:
        """The shard within the global tensor, without padding."""
        return tuple(slice(o, o + n) for o, n in zip(self.offset, self.size, strict=True))

    @property
    def valid_slices(self) -> tuple[slice, ...]:
        """The shard within the local tensor, without padding."""
        return tuple(slice(0, n) for n in self.size)

    @property
    def is_padded(self) -> bool:
        return self.size != self.local

    @property
    def sharded_axes(self) -> frozenset[str]:
        return frozenset(axis for axes in self.spec for axis in axes)


def shard_sizes(size: int, ranks: Iterable[int]) -> list[int]:
    """Return the sizes, padding included, of a dimension's shard after each axis in turn shards the
    dimension. ``ranks``: the sizes of the axes, slowest first."""
    return list(accumulate(ranks, lambda length, n: -(-length // n), initial=size))[1:]


def round_up(size: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is at least ``size``."""
    return -(-size // multiple) * multiple


def shard_of(
    shape: Sequence[int],
    spec: PartitionSpec,
    sizes: Mapping[str, int],
    index: Mapping[str, int],
    *,
    row_multiple: int = 1,
) -> Shard:
    """Return the shard of one rank, from the ``sizes`` of all axes and its ``index`` on each.

    A dimension of n entries that axes (c, b) shard is split into |c| pieces of ceil(n / |c|), and
    each piece into |b| pieces. The rank has piece ``index[b]`` of piece ``index[c]``. Its tensor
    is padded to a multiple of ``row_multiple`` rows, which changes neither offset nor size.
    """
    assert len(shape) == len(spec), f"{len(shape)} dimensions, {len(spec)} in the spec"
    offset, size, local = list[int](), list[int](), list[int]()
    for n, axes in zip(shape, spec, strict=True):
        start, stop, length = 0, n, n
        for axis, length in zip(axes, shard_sizes(n, map(sizes.__getitem__, axes)), strict=True):
            start = min(start + index[axis] * length, stop)
            stop = min(start + length, stop)
        offset.append(start)
        size.append(stop - start)
        local.append(length if local else round_up(length, row_multiple))
    return Shard(
        shape=tuple(shape), offset=tuple(offset), size=tuple(size), local=tuple(local), spec=spec
    )
