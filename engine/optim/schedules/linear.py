"""Linear decay from the peak to the floor."""

from __future__ import annotations


def decay(progress: float) -> float:
    """Return the position between floor (0) and peak (1). ``progress``: 0 at the end of the
    warm-up, 1 at the end of the schedule."""
    return 1.0 - progress
