"""Endless tokens from a Markov chain: needs no file, and a model can learn it.

The chain has S = min(256, vocab_size) states, whose ids are spread over the whole vocabulary. Each
state has four successors, with probabilities 1/2, 1/4, 1/8 and 1/8. All states are equally likely,
so a model first learns which ids occur (loss ln S nats per token), then the successors (loss
7/4 ln 2 = 1.213 nats).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.data.batches.sampler import permutation, raw_bits
from engine.data.source import Corpus, SourceRequest
from engine.errors import UserError

STATES = 256
VALIDATION_SAMPLES = 1024
STEPS = np.array([0, 0, 0, 0, 1, 1, 2, 3])  # successor by the three lowest random bits

TABLE_STREAM, TRAIN_STREAM, HELD_OUT_STREAM = range(100, 103)  # of random bits, one per use


def open_corpus(request: SourceRequest) -> Corpus:
    if request.vocab_size < 1:
        raise UserError(f"model.vocab_size={request.vocab_size} must be 1 or more")
    samples = VALIDATION_SAMPLES if request.validation > 0 else 0
    return Corpus(
        train=MarkovChain(request, TRAIN_STREAM, samples=None),
        validation=MarkovChain(request, HELD_OUT_STREAM, samples=samples),
        tokenizer=None,
        description=f"synthetic tokens, seed {request.seed}, without end",
        fingerprint=f"synthetic {request.seed} {request.vocab_size} {request.seq_len} {samples}",
    )


class MarkovChain:
    """Sample i is a walk of seq_len + 1 states, a pure function of (seed, i)."""

    def __init__(self, request: SourceRequest, stream: int, *, samples: int | None) -> None:
        self.samples = samples
        self._seed, self._stream, self.seq_len = request.seed, stream, request.seq_len
        states = min(STATES, request.vocab_size)
        self._ids = permutation(request.vocab_size, request.seed, TABLE_STREAM, 0)[:states]
        self._next = permutation(states, request.seed, TABLE_STREAM, 1)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (ids, targets) [n, seq_len]."""
        length = self.seq_len + 1
        draws = [raw_bits(length, self._seed, self._stream, int(i)) for i in indices]
        bits = np.array(draws, np.uint64).reshape(len(indices), length)
        states = len(self._next)
        state = (bits[:, 0] >> np.uint64(3)).astype(np.int64) % states
        step = STEPS[(bits & np.uint64(7)).astype(np.int64)]
        walk = np.empty((len(indices), length), np.int64)
        for position in range(length):
            walk[:, position] = state
            state = self._next[(state + step[:, position]) % states]
        ids = self._ids[walk]
        return ids[:, :-1], ids[:, 1:]

    def count_targets(self, indices: NDArray[np.int64]) -> int:
        return len(indices) * self.seq_len
