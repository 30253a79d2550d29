"""Splits a row of tokens: the head for training, the tail for validation."""

from __future__ import annotations

import math
from fractions import Fraction

from engine.data.batches.windows import Tokens, Windows
from engine.errors import UserError


def split_tokens(
    tokens: Tokens, *, validation: float, seq_len: int, name: str
) -> tuple[Windows, Windows]:
    """Split ``tokens`` into (train, validation). The validation part is the tail: the fraction
    ``validation`` of the tokens, rounded down.

    Raises:
        UserError: a part has fewer tokens than one sample needs.
    """
    total = len(tokens)
    held_out = int(total * validation)
    needed = seq_len + 1
    short = total - held_out < needed or (validation > 0 and held_out < needed)
    if short:
        smaller = min(validation, 1 - validation) if validation > 0 else 1.0
        enough = math.ceil(needed / Fraction(smaller))
        raise UserError(
            f"{name} is too short: SEQ_LEN={seq_len} needs {needed:,} tokens in each part, but "
            f"there are {total - held_out:,} to train on and {held_out:,} to validate "
            f"(data.validation={validation}); use a smaller SEQ_LEN or at least {enough:,} tokens"
        )
    boundary = total - held_out
    return Windows(tokens[:boundary], seq_len), Windows(tokens[boundary:], seq_len)
