"""Byte tokenizer: the ids 0 to 255 are the bytes of UTF-8, and 256 is end-of-text. It encodes
every text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.data.tokenizer import Piece, utf_8

END_OF_TEXT = "<|endoftext|>"  # how the id after the bytes is shown; the text encodes to its bytes
UNKNOWN = "\ufffd"
BYTES = 256


class Bytes:
    """A tokenizer with one id per byte."""

    @classmethod
    def fit(cls, pieces: Iterable[Piece], path: str | None = None) -> Self:
        return cls()

    @classmethod
    def load(cls, state: dict[str, Any]) -> Self:
        return cls()

    @property
    def size(self) -> int:
        return BYTES + 1

    @property
    def end_of_text(self) -> int | None:
        return BYTES

    def encode(self, text: str) -> NDArray[np.uint32]:
        return np.frombuffer(utf_8(text), np.uint8).astype(np.uint32)

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        return b"".join(map(_bytes_of, ids)).decode("utf-8", "replace")

    def byte_counts(self) -> NDArray[np.int64]:
        return np.array([1] * BYTES + [0], np.int64)

    def boundary(self, text: str) -> int:
        return len(text)

    def joined(self, other: Self) -> tuple[Self, NDArray[np.int64]]:
        return self, np.arange(self.size)  # both have the same vocabulary

    def state(self) -> dict[str, Any]:
        return {}


def _bytes_of(token: int) -> bytes:
    """Return the UTF-8 bytes that an id is decoded to."""
    if 0 <= token < BYTES:
        return bytes([token])
    return (END_OF_TEXT if token == BYTES else UNKNOWN).encode()


TOKENIZER = Bytes
