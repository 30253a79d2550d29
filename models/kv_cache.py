"""Keys and values of the positions that attention has seen, so that a next one brings only its own.

A model that is given a cache takes a text in any number of tokens at first, then one at a time.
"""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor


class LayerKVCache:
    """Those of one layer, with memory for ``capacity`` positions from the first on."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._buffer: tuple[Tensor, Tensor] | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the next S positions, k and v [B, heads, S, d] -> of all positions so far."""
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
    """Those of all layers of a model, by the layer's name."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._layers: defaultdict[str, LayerKVCache] = defaultdict(lambda: LayerKVCache(capacity))

    def __getitem__(self, layer: str) -> LayerKVCache:
        return self._layers[layer]

    @property
    def length(self) -> int:
        """Positions that all layers have seen."""
        return min((layer.length for layer in self._layers.values()), default=0)
