"""Keys and values of the positions that attention has seen, so that a next one brings only its own.

A model that is given a cache takes a text in any number of tokens at first, then one at a time.
"""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor


class KeyValues:
    """Those of one layer, with memory for ``room`` positions from the first on."""

    def __init__(self, room: int) -> None:
        self.room, self.length = room, 0
        self._held: tuple[Tensor, Tensor] | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the next S positions, k and v [B, heads, S, d] -> of all positions so far."""
        start, stop = self.length, self.length + k.shape[2]
        assert stop <= self.room
        assert start == 0 or stop == start + 1, "attention would need a mask of its own"
        if self._held is None:
            shape = (*k.shape[:2], self.room, k.shape[3])
            self._held = k.new_empty(shape), v.new_empty(shape)
        for held, new in zip(self._held, (k, v), strict=True):
            held[:, :, start:stop] = new
        self.length = stop
        keys, values = (held[:, :, :stop] for held in self._held)
        return keys, values


class Cache:
    """Those of all layers of a model, by the layer's name."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._layers: defaultdict[str, KeyValues] = defaultdict(lambda: KeyValues(room))

    def __getitem__(self, layer: str) -> KeyValues:
        return self._layers[layer]

    @property
    def length(self) -> int:
        """Positions that all layers have seen."""
        return min((layer.length for layer in self._layers.values()), default=0)
