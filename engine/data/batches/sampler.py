"""The order of samples: a pure function of (seed, samples consumed).

Random bits come from Philox (Salmon et al. 2011), seeded by NumPy's SeedSequence. NumPy guarantees
that the streams of both stay the same in all versions, but not ``Generator.permutation``. No global
generator is used.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

EPOCH = 1  # first number of the stream, which separates it from streams of other uses


def raw_bits(count: int, seed: int, *stream: int) -> NDArray[np.uint64]:
    """Return ``count`` random 64-bit numbers, a function of (seed, stream)."""
    sequence = np.random.SeedSequence(seed, spawn_key=stream)
    bits: NDArray[np.uint64] = np.random.Philox(sequence).random_raw(count)
    return bits


def permutation(count: int, seed: int, *stream: int) -> NDArray[np.int64]:
    """Return a random permutation of range(count): the argsort of ``count`` random numbers."""
    return np.argsort(raw_bits(count, seed, *stream), kind="stable").astype(np.int64)


class Sampler:
    """The order in which samples are consumed.

    Every epoch is another permutation of all samples. Epochs follow each other without a gap, so a
    batch may span two. Endless data (``samples`` is None) is consumed in its own order.
    """

    def __init__(self, samples: int | None, seed: int) -> None:
        assert samples is None or samples > 0
        self.samples = samples
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: permutation(samples or 0, seed, EPOCH, epoch)
        )

    def order(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the sample indices at positions [start, start + count) of the order."""
        places = np.arange(start, start + count)
        if self.samples is None:
            return places
        epochs, within = np.divmod(places, self.samples)
        order = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            order[in_epoch] = self._epoch(int(epoch))[within[in_epoch]]
        return order
