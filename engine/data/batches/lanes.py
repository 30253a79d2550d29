"""Lanes: rows of documents that are read in parallel, one sample of each per step.

The method is that of Languini (Stanić et al. 2023, "The Languini Kitchen"). Each document goes to
the lane that has the fewest tokens so far. A lane is its documents in order, each followed by a
separator. Step s (from 0) reads tokens s L to s L + L of every lane, L = seq_len, so the last
target of a step is the first input of the next one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engine.data.token_files.languini_lists import Book
from engine.data.token_files.token_shards import TokenShard, check_ids
from models.parallel.targets import IGNORED


def assign(lengths: Sequence[int], lanes: int) -> list[list[int]]:
    """Assign documents to lanes; return the indices of the documents in each lane. Each document
    goes to the lane with the fewest tokens so far; among equals, to the first lane."""
    heap = [(0, lane) for lane in range(lanes)]
    found: list[list[int]] = [[] for _ in range(lanes)]
    for index, length in enumerate(lengths):
        tokens, lane = heap[0]
        found[lane].append(index)
        heapq.heapreplace(heap, (tokens + length, lane))
    return found


class Lane:
    """The tokens of some documents, with a separator after each document."""

    def __init__(self, shards: Sequence[TokenShard], separator: int, vocabulary: int) -> None:
        self._shards, self._separator, self._vocabulary = shards, separator, vocabulary
        ends = np.cumsum([shard.tokens + 1 for shard in shards], dtype=np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        self.tokens = int(ends[-1]) if shards else 0

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the tokens [start, start + count) [count]; the lane repeats after its last
        token."""
        pieces, rest, place = [], count, start % max(1, self.tokens)
        while rest > 0:
            number = int(np.searchsorted(self._starts, place, "right")) - 1
            shard, within = self._shards[number], place - int(self._starts[number])
            ids = shard.read(within, min(rest, shard.tokens - within))
            check_ids(ids, self._vocabulary, shard)
            pieces += [ids, np.array([self._separator])[: rest - len(ids)]]
            taken = len(ids) + len(pieces[-1])
            rest, place = rest - taken, (place + taken) % self.tokens
        return np.concatenate([np.empty(0, np.int64), *pieces])


class LaneSplit:
    """Samples of lanes; the index of a sample is step x number of lanes + lane.

    Lanes for training repeat without end. Lanes for evaluation are read once: behind the end of a
    lane, inputs are 0 and targets are IGNORED, and the samples end with the longest lane.
    """

    def __init__(
        self, lanes: Sequence[Lane], *, seq_len: int, repeats: bool, last_n: int | None = None
    ) -> None:
        """Read ``lanes``. With ``last_n`` the samples of a lane overlap: each begins ``last_n``
        tokens after the previous one, and all but its last ``last_n`` targets are IGNORED. So every
        target that counts has a context of more than seq_len - last_n tokens, and the first
        seq_len - last_n targets of a lane never count."""
        self.lanes, self.seq_len, self._repeats = lanes, seq_len, repeats
        self._stride = last_n or seq_len
        self._skipped = seq_len - self._stride  # targets of a sample that are not evaluated
        self._tokens = np.array([lane.tokens for lane in lanes], np.int64)

    @classmethod
    def of(
        cls,
        books: Sequence[Book],
        *,
        lanes: int,
        seq_len: int,
        separator: int,
        vocabulary: int,
        repeats: bool,
    ) -> Self:
        """Assign books to ``lanes`` lanes by the numbers of tokens that the file list states."""
        assigned = assign([book.listed for book in books], lanes)
        rows = [
            Lane([books[i].shard for i in indices], separator, vocabulary) for indices in assigned
        ]
        return cls(rows, seq_len=seq_len, repeats=repeats)

    def sliding(self, last_n: int) -> Self:
        """Return the lanes in overlapping samples; only the last ``last_n`` targets of each
        count."""
        return type(self)(self.lanes, seq_len=self.seq_len, repeats=False, last_n=last_n)

    @property
    def samples(self) -> int | None:
        if self._repeats:
            return None
        inputs = int(self._tokens.max(initial=0)) - self._skipped
        return len(self.lanes) * -(-max(0, inputs) // self._stride)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (ids, targets) [n, seq_len]."""
        ids = np.zeros((len(indices), self.seq_len), np.int64)
        targets = np.full_like(ids, IGNORED)
        for row, (step, number) in enumerate(zip(*self._places(indices), strict=True)):
            lane, start = self.lanes[number], int(step) * self._stride
            rest = self.seq_len + 1 if self._repeats else max(0, lane.tokens - start)
            tokens = lane.read(start, min(self.seq_len + 1, rest))
            ids[row, : len(tokens)] = tokens[: self.seq_len]
            targets[row, : max(0, len(tokens) - 1)] = tokens[1:]
        targets[:, : self._skipped] = IGNORED
        return ids, targets

    def count_targets(self, indices: NDArray[np.int64]) -> int:
        if self._repeats:
            return len(indices) * self.seq_len
        steps, lanes = self._places(indices)
        left = self._tokens[lanes] - 1 - steps * self._stride - self._skipped
        return int(np.clip(left, 0, self._stride).sum())

    def _places(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the step [n] and the lane [n] of each sample in ``indices``."""
        return np.divmod(indices, max(1, len(self.lanes)))
