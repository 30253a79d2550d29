"""Character tokenizer. The vocabulary is the characters of the text, sorted by code point; tokens
that were added later follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.data.tokenizer import Piece
from engine.errors import UserError

END_OF_TEXT = "\x03"  # U+0003, END OF TEXT by its Unicode name
UNKNOWN = "\ufffd"
READS_TEXT = True
MAX_LISTED = 100  # characters listed in a message


class Char:
    """A tokenizer with one id per character."""

    def __init__(self, characters: str) -> None:
        """Number ``characters`` from 0 in the given order; each occurs once."""
        self.characters = characters
        points = _code_points(characters)
        self._ids = np.argsort(points).astype(np.uint32)
        self._points = points[self._ids]  # ascending

    @classmethod
    def fit(cls, pieces: Iterable[Piece], path: str | None = None) -> Self:
        characters: set[str] = set()
        for piece in pieces:
            characters.update(END_OF_TEXT if piece is None else piece)
        return cls("".join(sorted(characters)))

    @classmethod
    def load(cls, state: dict[str, Any]) -> Self:
        characters = state.get("characters")
        if not isinstance(characters, str) or len(characters) != len(set(characters)):
            raise UserError(
                "the saved vocabulary is corrupt: 'characters' must be a string in which no "
                "character occurs twice; restore the file"
            )
        return cls(characters)

    @property
    def size(self) -> int:
        return len(self.characters)

    @property
    def end_of_text(self) -> int | None:
        position = self.characters.find(END_OF_TEXT)
        return None if position < 0 else position

    def encode(self, text: str) -> NDArray[np.uint32]:
        points = _code_points(text)
        positions = np.searchsorted(self._points, points)
        known = positions < self.size
        known[known] = self._points[positions[known]] == points[known]
        if not known.all():
            unknown = text[int(np.argmin(known))]
            raise UserError(
                f"the character {unknown!r} (U+{ord(unknown):04X}) is not in the vocabulary of "
                f"{self.size:,} characters: {self._listed()}; leave it out"
            )
        ids: NDArray[np.uint32] = self._ids[positions]
        return ids

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        return "".join(self.characters[i] if 0 <= i < self.size else UNKNOWN for i in ids)

    def byte_counts(self) -> NDArray[np.int64]:
        texts = ("" if text == END_OF_TEXT else text for text in self.characters)
        return np.array([len(text.encode()) for text in texts], np.int64)

    def boundary(self, text: str) -> int:
        return len(text)

    def joined(self, other: Self) -> tuple[Self, NDArray[np.int64]]:
        known = set(self.characters)
        joined = type(self)(
            self.characters + "".join(c for c in other.characters if c not in known)
        )
        return joined, joined.encode(other.characters).astype(np.int64)

    def _listed(self) -> str:
        """Format the vocabulary for a message: at most its first ``MAX_LISTED`` characters."""
        characters = "".join(sorted(self.characters))
        if len(characters) <= MAX_LISTED:
            return repr(characters)
        return f"{characters[:MAX_LISTED]!r} ..."

    def state(self) -> dict[str, Any]:
        return {"characters": self.characters}


def _code_points(text: str) -> NDArray[np.uint32]:
    """Return the code points of a text [n]. A lone surrogate, which a prompt from a terminal may
    contain, is one too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32)


TOKENIZER = Char
