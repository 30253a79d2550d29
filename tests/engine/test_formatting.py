"""The form of numbers in messages."""

from __future__ import annotations

from engine.formatting import format_ranks


def test_ranks_are_listed_up_to_a_limit() -> None:
    assert format_ranks([3]) == "rank 3"
    assert format_ranks([0, 1, 5]) == "ranks 0, 1 and 5"
    assert format_ranks(range(100)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 92 more"
