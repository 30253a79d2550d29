"""The amount of data a run has consumed so far. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Consumed:
    """Totals over all ranks since step 1 of the run, up to the end of ``step``.

    A resume may change the batch size, the sequence length and the data, so the totals are carried
    along and never computed from the present settings alone.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    epochs: float = 0.0
    """With its fraction; endless data adds nothing."""
