"""Suggestions for invalid values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

COMPARED = 40  # characters; comparing strings is slow
SAME_WORD = 0.82  # minimum similarity, from 0 to 1


def nearest_multiples(value: int, of: int) -> str:
    """Format the multiples of ``of`` that are nearest below and above ``value``: "8, 12"."""
    below = value // of * of
    return ", ".join(str(n) for n in (below, below + of) if n)


def closest_spelling(word: str, names: Iterable[str]) -> str | None:
    """Return the one name that ``word`` misspells, else None.

    A different number or a different word is another model, not a misspelling: gpt2_xxl is not
    gpt2_xl, and gpt3_350M is not gpt3.
    """
    parts = _parts(word)
    matches = [name for name in names if _misspells(parts, _parts(name))]
    return matches[0] if len({tuple(_parts(name)) for name in matches}) == 1 else None


def _parts(word: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d_]+", word[:COMPARED].casefold())


def _misspells(parts: list[str], others: list[str]) -> bool:
    return len(parts) == len(others) and all(
        part == other
        or (not part.isdigit() and SequenceMatcher(None, part, other).ratio() >= SAME_WORD)
        for part, other in zip(parts, others, strict=True)
    )
