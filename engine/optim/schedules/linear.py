"""A straight line from the peak to the floor."""

from __future__ import annotations


def decay(progress: float) -> float:
    """Share of the peak above the floor; ``progress`` runs from 0 (end of warm-up) to 1."""
    return 1.0 - progress
