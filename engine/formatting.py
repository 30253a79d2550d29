"""Numbers, bytes and durations as messages and reports print them. No torch."""

from __future__ import annotations

from collections.abc import Sequence


def format_ranks(numbers: Sequence[int], limit: int = 8) -> str:
    """Return ``rank 3`` or ``ranks 0, 1 and 5``; of more than ``limit`` ranks only the first."""
    if len(numbers) > limit:
        return f"ranks {', '.join(map(str, numbers[:limit]))} and {len(numbers) - limit} more"
    *first, last = map(str, numbers)
    return f"ranks {', '.join(first)} and {last}" if first else f"rank {last}"
