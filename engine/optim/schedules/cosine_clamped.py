"""Cosine decay from the peak towards zero, which stops at the floor: max(floor, cosine).

The schedule 'cosine' is scaled instead, so that it reaches the floor only at the end.
"""

from __future__ import annotations

import math

AFTER_WARMUP = True


def decay(progress: float, floor: float) -> float:
    """Return the fraction of the peak learning rate: 1 at progress 0, ``floor`` at 1."""
    return max(floor, 0.5 * (1.0 + math.cos(math.pi * progress)))
