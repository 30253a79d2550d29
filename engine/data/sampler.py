"""The order of samples: a function of (seed, samples consumed), and of nothing else.

Random bits are Philox's (Salmon et al. 2011) under NumPy's SeedSequence. NumPy keeps the streams
of both from version to version, which it does not promise for ``Generator.permutation``; and no
global generator is touched.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

EPOCH = 1  # what the bits are for: streams of other uses do not meet these


def raw_bits(count: int, seed: int, *stream: int) -> NDArray[np.uint64]:
    """``count`` random 64-bit numbers, the same for the same (seed, stream)."""
    sequence = np.random.SeedSequence(seed, spawn_key=stream)
    bits: NDArray[np.uint64] = np.random.Philox(sequence).random_raw(count)
    return bits


def permutation(count: int, seed: int, *stream: int) -> NDArray[np.int64]:
    """A permutation of range(count): the order of as many random numbers."""
    return np.argsort(raw_bits(count, seed, *stream), kind="stable").astype(np.int64)


class Sampler:
    """Which sample is consumed when.

    Epochs follow each other without a gap, each a permutation of its own of all samples; a batch
    that an epoch cannot fill goes on into the next one. Samples without end come in their order.
    """

    def __init__(self, samples: int | None, seed: int) -> None:
        assert samples is None or samples > 0
        self.samples = samples
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: permutation(samples or 0, seed, EPOCH, epoch)
        )

    def order(self, start: int, count: int) -> NDArray[np.int64]:
        """The samples consumed as number start, ..., start + count - 1 of the run, from 0."""
        places = np.arange(start, start + count)
        if self.samples is None:
            return places
        epochs, within = np.divmod(places, self.samples)
        order = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order[here] = self._epoch(int(epoch))[within[here]]
        return order
