"""Where a local tensor sits inside its global parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PartitionSpec = tuple[tuple[str, ...], ...]
"""Per dimension of a parameter: the axes that cut it, slowest first; ``()`` where it is whole."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One rank's piece of a parameter.

    ``shape`` is global and unpadded; ``offset`` and ``size`` place the valid piece in it; ``local``
    is the shape of the tensor that the rank holds: ``size``, padded at its end so that all ranks
    hold equal shapes (uneven cuts only, such as an odd vocabulary over two ranks). Padding is never
    saved, counted or clipped.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    local: tuple[int, ...]
    spec: PartitionSpec

    @property
    def slices(self) -> tuple[slice, ...]:
        """The valid piece within the global tensor."""
        return tuple(slice(o, o + n) for o, n in zip(self.offset, self.size, strict=True))

    @property
    def valid_slices(self) -> tuple[slice, ...]:
        """The valid piece within the local tensor."""
        return tuple(slice(0, n) for n in self.size)

    @property
    def is_padded(self) -> bool:
        return self.size != self.local

    @property
    def sharded_axes(self) -> frozenset[str]:
        return frozenset(axis for axes in self.spec for axis in axes)


def shard_of(
    shape: Sequence[int], spec: PartitionSpec, sizes: Mapping[str, int], index: Mapping[str, int]
) -> Shard:
    """The box of one rank: ``sizes`` of all axes, ``index`` of the rank on each.

    A dimension of n entries cut by axes (c, b) falls into |c| pieces of ceil(n / |c|), and each of
    these into |b|; the rank holds number ``index[b]`` of number ``index[c]``.
    """
    assert len(shape) == len(spec), f"{len(shape)} dimensions, {len(spec)} cuts"
    offset, size, local = [], [], []
    for n, axes in zip(shape, spec, strict=True):
        start, stop, held = 0, n, n
        for axis in axes:
            held = -(-held // sizes[axis])
            start = min(start + index[axis] * held, stop)
            stop = min(start + held, stop)
        offset.append(start)
        size.append(stop - start)
        local.append(held)
    return Shard(
        shape=tuple(shape), offset=tuple(offset), size=tuple(size), local=tuple(local), spec=spec
    )
