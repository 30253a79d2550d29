"""Windows: the samples of a row of tokens, side by side or overlapping."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.parallel.targets import IGNORED


class Tokens(Protocol):
    """A row of token ids, in memory or in files."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Any, /) -> Any:
        """Return the ids at the positions ``places`` [...]; for a slice, return a row of ids."""


class Windows:
    """Samples of a row of tokens. Sample i is tokens i L to i L + L inclusive, L = seq_len.

    The last token of a sample is only a target; it is also the first input of the next sample. So
    inputs do not overlap and every token but the first is a target once. Fewer than L + 1 tokens at
    the end are dropped.
    """

    def __init__(self, tokens: Tokens, seq_len: int) -> None:
        self.tokens = tokens
        self.seq_len = seq_len

    @property
    def samples(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.seq_len)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (ids, targets) [n, seq_len]."""
        assert np.all((indices >= 0) & (indices < self.samples)), "no such sample"
        places = indices[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        window = self.tokens[places].astype(np.int64)
        return window[:, :-1], window[:, 1:]

    def count_targets(self, indices: NDArray[np.int64]) -> int:
        return len(indices) * self.seq_len

    def sliding(self, stride: int) -> SlidingWindows:
        return SlidingWindows(self.tokens, self.seq_len, stride)


class SlidingWindows:
    """Overlapping samples of a row of tokens: each begins ``stride`` tokens after the one before.

    Only the last ``stride`` targets of a sample are to be scored: each has a context of more than
    seq_len - stride tokens. Over all samples, every token is scored once, except the first
    seq_len - stride + 1. Beyond the end of the row, targets are IGNORED and inputs are 0.
    """

    def __init__(self, tokens: Tokens, seq_len: int, stride: int) -> None:
        assert 1 <= stride <= seq_len
        self.tokens, self.seq_len, self._stride = tokens, seq_len, stride

    @property
    def samples(self) -> int:
        scored = len(self.tokens) - 1 - (self.seq_len - self._stride)
        return max(0, -(-scored // self._stride))

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (ids, targets) [n, seq_len]."""
        assert np.all((indices >= 0) & (indices < self.samples)), "no such sample"
        places = indices[:, None] * self._stride + np.arange(self.seq_len + 1)
        beyond = places >= len(self.tokens)
        window = self.tokens[np.where(beyond, 0, places)].astype(np.int64)
        ids = np.where(beyond, 0, window)[:, :-1]
        return ids, np.where(beyond, IGNORED, window)[:, 1:]

    def count_targets(self, indices: NDArray[np.int64]) -> int:
        left = len(self.tokens) - 1 - indices * self._stride
        return int(np.minimum(left, self.seq_len).sum())
