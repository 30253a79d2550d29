"""Cosine decay from the peak to the floor (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5)."""

from __future__ import annotations

import math

AFTER_WARMUP = True


def decay(progress: float, floor: float) -> float:
    """Return the fraction of the peak learning rate: 1 at progress 0, ``floor`` at 1."""
    return floor + (1.0 - floor) * (0.5 * (1.0 + math.cos(math.pi * progress)))
