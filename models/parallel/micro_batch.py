"""The facts about a micro-batch that its layers need."""

from __future__ import annotations

from dataclasses import dataclass

from models.parallel.rows import RowOrder


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A micro-batch of samples of equal length on one rank.

    Compiled code takes a MicroBatch as an argument. torch.compile compiles the code again for
    another ``length``, but not for another ``seed``, which only untraced functions read.
    """

    length: int
    """Tokens of a sample."""
    seed: int = 0
    """Of the dropout masks."""
    order: RowOrder | None = None
    """The order of the rows; None if no layer needs it."""
    shared: bool = False
    """Several ranks share a sample."""
