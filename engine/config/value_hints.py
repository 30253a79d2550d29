"""Values that the user may have meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

COMPARED = 40  # characters; comparing strings is slow
SAME_WORD = 0.82  # least likeness, from 0 to 1


def nearest_multiples(value: int, of: int) -> str:
    """The multiples next below and next above ``value``: "8, 12"."""
    below = value // of * of
    return ", ".join(str(n) for n in (below, below + of) if n)


def closest_spelling(word: str, names: Iterable[str]) -> str | None:
    """The one name that ``word`` misspells. None where a number or a whole word differs, which
    makes another size of it: gpt2_xxl is not gpt2_xl, and gpt3_350M is not gpt3."""
    parts = _parts(word)
    found = [name for name in names if _misspells(parts, _parts(name))]
    return found[0] if len({tuple(_parts(name)) for name in found}) == 1 else None


def _parts(word: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d_]+", word[:COMPARED].casefold())


def _misspells(parts: list[str], others: list[str]) -> bool:
    return len(parts) == len(others) and all(
        one == other
        or (not one.isdigit() and SequenceMatcher(None, one, other).ratio() >= SAME_WORD)
        for one, other in zip(parts, others, strict=True)
    )
