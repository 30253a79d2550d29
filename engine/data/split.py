"""A row of tokens as samples, and its two parts: the head to train on, the tail to validate."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError


class Windows:
    """Sample i is tokens [i L, i L + L], L = seq_len: inputs do not overlap, every target counts.

    A sample reads one token more than it has inputs; that token is the next sample's first input.
    What is left at the end, fewer than L + 1 tokens, is no sample.
    """

    def __init__(self, tokens: NDArray[Any], seq_len: int) -> None:
        self.tokens = tokens
        self.seq_len = seq_len

    @property
    def samples(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.seq_len)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(ids, targets) [n, seq_len]."""
        assert np.all((indices >= 0) & (indices < self.samples)), "no such sample"
        places = indices[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        window = self.tokens[places].astype(np.int64)
        return window[:, :-1], window[:, 1:]

    def count_targets(self, indices: NDArray[np.int64]) -> int:
        return len(indices) * self.seq_len


def split_tokens(
    tokens: NDArray[Any], *, validation: float, seq_len: int, name: str
) -> tuple[Windows, Windows]:
    """(train, validation): the tail is ``validation`` of the tokens, rounded down.

    Raises:
        UserError: a part that is asked for has not one sample.
    """
    total = len(tokens)
    held_out = int(total * validation)
    needed = seq_len + 1
    short = total - held_out < needed or (validation > 0 and held_out < needed)
    if short:
        smaller = min(validation, 1 - validation) if validation > 0 else 1.0
        enough = math.ceil(needed / Fraction(smaller))
        raise UserError(
            f"{name} is too short: {total:,} tokens, {total - held_out:,} to train on and "
            f"{held_out:,} to validate (data.validation={validation}); SEQ_LEN={seq_len} needs "
            f"{needed:,} in each part, so about {enough:,}"
        )
    boundary = total - held_out
    return Windows(tokens[:boundary], seq_len), Windows(tokens[boundary:], seq_len)
