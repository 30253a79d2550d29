"""No decay: the peak learning rate until the end."""

from __future__ import annotations

AFTER_WARMUP = True


def decay(progress: float, floor: float) -> float:
    """Return the fraction of the peak learning rate: always 1."""
    return 1.0
