"""Cosine decay from the peak to the floor (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5)."""

from __future__ import annotations

import math


def decay(progress: float) -> float:
    """Return the position between floor (0) and peak (1). ``progress``: 0 at the end of the
    warm-up, 1 at the end of the schedule."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))
