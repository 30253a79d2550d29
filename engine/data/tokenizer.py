"""Text <-> token ids: every file in ``engine/data/tokenizers`` is a tokenizer, by its file name.

A tokenizer is a module whose ``TOKENIZER`` is a class that fulfils ``Tokenizer``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from engine import discover
from engine.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE_NAME = "tokenizer.json"
"""The file of a run's folder that has its tokenizer, as ``dump`` returns it."""

# A stream of text comes in pieces; None between two documents: an end-of-text goes there.
Piece = str | None


class Tokenizer(Protocol):
    """Ids are 0 to size - 1."""

    @classmethod
    def fit(cls, pieces: Iterable[Piece]) -> Self:
        """The tokenizer for this text; one with a fixed vocabulary does not read it."""

    @classmethod
    def load(cls, state: dict[str, Any]) -> Self:
        """The tokenizer whose ``state`` this was."""

    @property
    def size(self) -> int:
        """How many ids there are."""

    @property
    def end_of_text(self) -> int | None:
        """The id that stands between documents; None if the vocabulary has none."""

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Ids [n] of a text. Nothing in the text is special: it never encodes to ``end_of_text``
        unless by its characters. Raises UserError for text that has no ids."""

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of ids [n]; U+FFFD for an id outside the vocabulary."""

    def byte_counts(self) -> NDArray[np.int64]:
        """How many bytes of UTF-8 each id stands for [size]; ``end_of_text`` for none."""

    def boundary(self, text: str) -> int:
        """The last place b where encode(text) is surely encode(text[:b]) + encode(text[b:]),
        whatever text follows; 0 if there is none."""

    def joined(self, other: Self) -> tuple[Self, NDArray[np.int64]]:
        """This vocabulary and, with the ids after it, the tokens of ``other`` that it lacks; and
        the id there of each id of ``other`` [other.size]."""

    def state(self) -> dict[str, Any]:
        """All that ``load`` needs, fit for JSON."""


def names() -> list[str]:
    """The tokenizers there are; imports none of them."""
    return discover.module_names("engine.data.tokenizers")


def tokenizer_type(name: str) -> type[Tokenizer]:
    """The class of a tokenizer. Raises UserError if there is none of that name."""
    if name not in names():
        raise UserError(
            f"data.tokenizer={name!r} is not a tokenizer; there are: {', '.join(names())}"
        )
    found: type[Tokenizer] = discover.load("engine.data.tokenizers", name).TOKENIZER
    return found


def dump(name: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer as an object fit for JSON, for ``load``."""
    return {"type": name, **tokenizer.state()}


def read_saved(path: Path) -> dict[str, Any] | None:
    """What ``dump`` gave of a tokenizer, from a file, if there is one. Raises UserError for another
    file."""
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        saved = None
    if not isinstance(saved, dict) or "type" not in saved:
        raise UserError(f"{path} is no tokenizer of a run")
    return saved


def load(saved: dict[str, Any]) -> Tokenizer:
    """The tokenizer that ``dump`` saved. Raises UserError if it is not one."""
    state = dict(saved)
    return tokenizer_type(str(state.pop("type", None))).load(state)
