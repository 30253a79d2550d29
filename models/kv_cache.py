"""A cache of the keys and values of past positions, so that only new positions are computed.

A model with a cache takes any number of tokens in its first call, then one token a call.
"""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor


class LayerKVCache:
    """Keys and values of one layer. The first use allocates memory for ``capacity`` positions."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._buffer: tuple[Tensor, Tensor] | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v [B, heads, S, d] of S new positions; return k and v of all positions."""
        start, stop = self.length, self.length + k.shape[2]
        assert stop <= self.capacity
        assert start == 0 or stop == start + 1, "attention would need a mask of its own"
        if self._buffer is None:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self._buffer = k.new_empty(shape), v.new_empty(shape)
        for buffer, new in zip(self._buffer, (k, v), strict=True):
            buffer[:, :, start:stop] = new
        self.length = stop
        keys, values = (buffer[:, :, :stop] for buffer in self._buffer)
        return keys, values


class KVCache:
    """The caches of all layers of a model, by the layer's name."""

    def __init__(self, capacity: int) -> None:
        self._layers: defaultdict[str, LayerKVCache] = defaultdict(lambda: LayerKVCache(capacity))

    def __getitem__(self, layer: str) -> LayerKVCache:
        return self._layers[layer]

    @property
    def length(self) -> int:
        """The number of positions that every layer has cached."""
        return min((layer.length for layer in self._layers.values()), default=0)
