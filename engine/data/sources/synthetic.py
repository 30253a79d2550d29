"""Tokens drawn from a Markov chain: no file, no end, and something to learn.

The chain has S = min(256, vocab_size) states, ids spread over the whole vocabulary. From a state
it goes on to one of four with probability 1/2, 1/4, 1/8, 1/8. Every state is as likely as any
other, so a model first learns which ids occur (ln S nats a token), then who follows whom, down to
7/4 ln 2 = 1.213 nats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.data.sampler import permutation, raw_bits
from engine.data.source import Corpus, SourceRequest
from engine.errors import UserError

STATES = 256
VALIDATION = 1024  # samples
STEPS = np.array([0, 0, 0, 0, 1, 1, 2, 3])  # the three lowest bits of a draw choose the successor

TABLE, TRAIN, HELD_OUT = range(100, 103)  # what a draw is for: no two share a stream


def open_corpus(request: SourceRequest) -> Corpus:
    if request.vocab_size < 1:
        raise UserError(f"model.vocab_size={request.vocab_size}: a vocabulary has 1 token or more")
    samples = VALIDATION if request.validation > 0 else 0
    return Corpus(
        train=MarkovChain(request, TRAIN, samples=None),
        validation=MarkovChain(request, HELD_OUT, samples=samples),
        tokenizer=None,
        description=f"synthetic tokens, seed {request.seed}, without end",
        fingerprint=f"synthetic {request.seed} {request.vocab_size} {request.seq_len} {samples}",
    )


class MarkovChain:
    """Sample i is a walk of seq_len + 1 states, a function of (seed, i) alone."""

    def __init__(self, request: SourceRequest, stream: int, *, samples: int | None) -> None:
        self.samples = samples
        self._seed, self._stream, self.seq_len = request.seed, stream, request.seq_len
        states = min(STATES, request.vocab_size)
        self._ids = permutation(request.vocab_size, request.seed, TABLE, 0)[:states]
        self._next = permutation(states, request.seed, TABLE, 1)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(ids, targets) [n, seq_len]."""
        length = self.seq_len + 1
        draws = [raw_bits(length, self._seed, self._stream, int(i)) for i in indices]
        bits = np.array(draws, np.uint64).reshape(len(indices), length)
        states = len(self._next)
        state = (bits[:, 0] >> np.uint64(3)).astype(np.int64) % states
        step = STEPS[(bits & np.uint64(7)).astype(np.int64)]
        walk = np.empty((len(indices), length), np.int64)
        for place in range(length):
            walk[:, place] = state
            state = self._next[(state + step[:, place]) % states]
        ids = self._ids[walk]
        return ids[:, :-1], ids[:, 1:]

    def count_targets(self, indices: NDArray[np.int64]) -> int:
        return len(indices) * self.seq_len
