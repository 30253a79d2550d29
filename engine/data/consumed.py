"""What a run has read of its data so far. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Consumed:
    """By the end of ``step``, since the run began and over all ranks: ``samples``, ``tokens``, and
    ``epochs``, a fraction included, of data that ends. A resume may change the size of a step, of a
    sample and of the data, so none of these is computed from the present settings alone."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    epochs: float = 0.0
