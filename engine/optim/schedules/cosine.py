"""Half a cosine from the peak to the floor (Loshchilov, Hutter 2017, arXiv 1608.03983, eq. 5)."""

from __future__ import annotations

import math


def decay(progress: float) -> float:
    """Share of the peak above the floor; ``progress`` runs from 0 (end of warm-up) to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))
