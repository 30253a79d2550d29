"""Linear decay from the peak to the floor."""

from __future__ import annotations

AFTER_WARMUP = True


def decay(progress: float, floor: float) -> float:
    """Return the fraction of the peak learning rate: 1 at progress 0, ``floor`` at 1."""
    return floor + (1.0 - floor) * (1.0 - progress)
