"""All-pairs testing: few rows that try every pair of choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any


def pairs(
    *choices: Sequence[Any], legal: Callable[..., bool] = lambda *row: True
) -> list[tuple[Any, ...]]:
    """Return legal rows, one value of each of ``choices``, so that every pair of values of two
    columns that a legal row has occurs in one (greedy: Cohen et al. 1997, "AETG")."""
    columns = list(combinations(range(len(choices)), 2))

    def covers(row: Sequence[int]) -> set[tuple[int, int, int, int]]:
        return {(i, row[i], j, row[j]) for i, j in columns}

    def values(row: Sequence[int]) -> tuple[Any, ...]:
        return tuple(choice[index] for choice, index in zip(choices, row, strict=True))

    rows = [row for row in product(*(range(len(c)) for c in choices)) if legal(*values(row))]
    todo = set().union(*map(covers, rows))
    picked = []
    while todo:
        best = max(rows, key=lambda row: len(covers(row) & todo))
        picked.append(values(best))
        todo -= covers(best)
    return picked
