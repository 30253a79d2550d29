"""Registry of tokenizers: every module in ``engine/data/tokenizers`` is one, named by its file.

A tokenizer is a module whose ``TOKENIZER`` is a class that implements ``Tokenizer``. The module
of a vocabulary that depends on the text defines ``READS_TEXT``.
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

Piece = str | None
"""A piece of a stream of text; None between two documents, where the end-of-text token goes."""


class Tokenizer(Protocol):
    """Encodes text to ids, which are 0 to size - 1, and decodes them."""

    @classmethod
    def fit(cls, pieces: Iterable[Piece], path: str | None = None) -> Self:
        """Return the tokenizer for this text, or the one in the file at ``path``
        (data.tokenizer_path). A tokenizer of fixed vocabulary reads neither. Raises UserError."""

    @classmethod
    def load(cls, state: dict[str, Any]) -> Self:
        """Make a tokenizer from the result of ``state``. Raises UserError if it is corrupt."""

    @property
    def size(self) -> int:
        """Number of ids."""

    @property
    def end_of_text(self) -> int | None:
        """Id of the token between documents; None if the vocabulary has none."""

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Encode a text to ids [n]. The text has no special tokens: only the character of
        ``end_of_text`` itself, if it is one, is encoded to it. Raises UserError for text that has
        no ids."""

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """Decode ids [n]; an id outside the vocabulary becomes U+FFFD."""

    def byte_counts(self) -> NDArray[np.int64]:
        """Return the number of UTF-8 bytes of each id [size]; 0 for ``end_of_text``."""

    def boundary(self, text: str) -> int:
        """Return the last position b where encode(text + more) is encode(text[:b]) +
        encode(text[b:] + more), whatever ``more`` follows; 0 if there is none."""

    def joined(self, other: Self) -> tuple[Self, NDArray[np.int64]]:
        """Extend this vocabulary by the tokens of ``other`` that it lacks, whose ids follow its
        own. Return the new tokenizer, and the new id of each token of ``other`` [other.size]."""

    def state(self) -> dict[str, Any]:
        """Return a JSON object from which ``load`` makes the tokenizer again."""


def names() -> list[str]:
    """List the tokenizers, without importing any."""
    return discover.module_names("engine.data.tokenizers")


def tokenizer_type(name: str) -> type[Tokenizer]:
    """Return the class of a tokenizer. Raises UserError for an unknown name."""
    if name not in names():
        raise UserError(
            f"data.tokenizer={name!r} is not a tokenizer; tokenizers: {', '.join(names())}"
        )
    tokenizer: type[Tokenizer] = discover.load("engine.data.tokenizers", name).TOKENIZER
    return tokenizer


class HasState(Protocol):
    """A tokenizer, or a codebook of images."""

    def state(self) -> dict[str, Any]:
        """Return a JSON object from which ``load`` makes the object again."""


def dump(tokenizer: HasState) -> dict[str, Any]:
    """Return a tokenizer or a codebook as a JSON object, for ``load`` and ``load_any``. The type of
    a tokenizer is the name of its module; a codebook's is IMAGES, which its state contains."""
    return {"type": type(tokenizer).__module__.rpartition(".")[2], **tokenizer.state()}


def fixed_size(name: str, path: str | None) -> int | None:
    """Return the number of ids of a tokenizer, with its file at ``path`` if it has one; None if the
    number depends on the text. Raises UserError if the file cannot be read."""
    module = discover.load("engine.data.tokenizers", name)
    return None if hasattr(module, "READS_TEXT") else tokenizer_type(name).fit((), path).size


def read_saved(path: Path) -> dict[str, Any] | None:
    """Read the JSON object of a tokenizer, as ``dump`` returns it, from a file; None if there is no
    file. Raises UserError if it is corrupt."""
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        saved = None
    if not isinstance(saved, dict) or "type" not in saved:
        raise UserError(f"{path} does not contain the tokenizer of a run; restore it")
    return saved


def load(saved: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer that ``dump`` saved. Raises UserError if it is corrupt, or not of
    text."""
    state = dict(saved)
    return tokenizer_type(str(state.pop("type", None))).load(state)


def utf_8(text: str) -> bytes:
    """Return the UTF-8 bytes of a text. Raises UserError for half of a surrogate pair, which a
    prompt from a terminal may contain."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        point = f"U+{ord(text[error.start]):04X}"
        raise UserError(
            f"{point} is half of a surrogate pair, or a byte that is not UTF-8; leave it out"
        ) from None


IMAGES = "images"
"""The type of a codebook, which is stored where a tokenizer is."""
