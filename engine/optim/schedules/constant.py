"""The peak learning rate all the way."""

from __future__ import annotations


def decay(progress: float) -> float:
    """Share of the peak above the floor; ``progress`` runs from 0 (end of warm-up) to 1."""
    return 1.0
