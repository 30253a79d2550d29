"""SentencePiece (Kudo and Richardson 2018): any model file, named by ``data.tokenizer_path``.

The token between documents is the end-of-sentence symbol of the model; without one it is the first
user-defined symbol, such as the ``<D>`` of Languini's models. SentencePiece encodes a user-defined
symbol in a text to its id. Here no text becomes the token between documents: the encoder has a copy
of the model in which that symbol is a control symbol, which SentencePiece never finds in a text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.data.tokenizer import Piece, utf_8
from engine.errors import UserError

SPACE = "\u2581"  # SentencePiece's symbol for a space
UNKNOWN = "\ufffd"
NORMAL, UNKNOWN_PIECE, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # types of pieces in a file


class SentencePiece:
    """The tokenizer of a model file."""

    def __init__(self, content: bytes, name: str = "the saved SentencePiece model") -> None:
        """Read the content of a model file. Raises UserError, which begins with ``name``."""
        self._content = content
        try:
            self._encoder, self._decoder, model = _open(content)
        except UserError:
            raise
        except Exception as error:  # SentencePiece's and protobuf's have no common base
            raise UserError(f"{name} is not a SentencePiece model") from error
        self._pieces = [piece.piece for piece in model.pieces]
        self._types = np.array([piece.type for piece in model.pieces])
        self._end = _end_of_text(model)
        spec = model.normalizer_spec
        self._is_literal = spec.escape_whitespaces and not (
            spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces
        )

    @classmethod
    def fit(cls, pieces: Iterable[Piece], path: str | None = None) -> Self:
        if path is None:
            raise UserError(
                "data.tokenizer='sentencepiece' needs a model file; set data.tokenizer_path"
            )
        name = f"data.tokenizer_path={path!r}"
        try:
            return cls(Path(path).read_bytes(), name)
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror or error}") from error

    @classmethod
    def load(cls, state: dict[str, Any]) -> Self:
        try:
            content = base64.b64decode(str(state.get("model", "")), validate=True)
        except ValueError:
            content = b""
        return cls(content)

    @property
    def size(self) -> int:
        return len(self._pieces)

    @property
    def end_of_text(self) -> int | None:
        return self._end

    def encode(self, text: str) -> NDArray[np.uint32]:
        utf_8(text)  # raises where SentencePiece would raise its own error
        return np.array(self._encoder.encode(text), np.uint32)

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        return "".join(
            self._decoder.decode(run) if known else UNKNOWN * len(run)
            for known, run in _runs(map(int, ids), self.size)
        )

    def byte_counts(self) -> NDArray[np.int64]:
        counts = np.zeros(self.size, np.int64)  # control symbols have no text
        for token, (piece, kind) in enumerate(zip(self._pieces, self._types, strict=True)):
            if kind in (NORMAL, USER_DEFINED) and token != self._end:
                counts[token] = len(piece.replace(SPACE, " ").encode())
            elif kind in (UNKNOWN_PIECE, BYTE):  # the unknown piece stands for at least one
                counts[token] = 1
        return counts

    def boundary(self, text: str) -> int:
        """Return the last position between two characters that are adjacent in no piece, so that no
        piece crosses the position; 0 for a model that changes the text before it looks for
        pieces."""
        if not self._is_literal:
            return 0
        pairs, known = self._neighbours
        spaced = text.replace(" ", SPACE)
        for place in range(len(text) - 1, 0, -1):
            pair = spaced[place - 1 : place + 1]
            # SentencePiece joins unknown characters that follow each other
            if pair not in pairs and (pair[0] in known or pair[1] in known):
                return place
        return 0

    def joined(self, other: Self) -> tuple[Self, NDArray[np.int64]]:
        if other.state() != self.state():
            raise UserError(
                "data.tokenizer_path is another SentencePiece model than the one that the model "
                "was trained with, so ids have other meanings; set it to that model"
            )
        return self, np.arange(self.size)

    def state(self) -> dict[str, Any]:
        return {"model": base64.b64encode(self._content).decode()}

    @cached_property
    def _neighbours(self) -> tuple[frozenset[str], frozenset[str]]:
        """The pairs of characters that are adjacent in some piece, and all characters of the
        pieces."""
        texts = [
            piece
            for piece, kind in zip(self._pieces, self._types, strict=True)
            if kind not in (CONTROL, BYTE)
        ]
        pairs = {text[i : i + 2] for text in texts for i in range(len(text) - 1)}
        return frozenset(pairs), frozenset("".join(texts))


def _open(content: bytes) -> tuple[Any, Any, Any]:
    """Return the encoder, the decoder and the protobuf message of a model file. The decoder drops
    no space at the start, so the text of several ids is the concatenation of their texts.

    Raises UserError if SentencePiece is not installed, SentencePiece's own exception if the content
    is no model.
    """
    try:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    except ImportError as error:
        raise UserError(
            "data.tokenizer='sentencepiece' needs SentencePiece; pip install sentencepiece"
        ) from error
    model, encoding, decoding = (
        sentencepiece_model_pb2.ModelProto.FromString(content) for _ in range(3)
    )
    end = _end_of_text(model)
    if end is not None:
        encoding.pieces[end].type = CONTROL
    decoding.normalizer_spec.add_dummy_prefix = False
    decoding.normalizer_spec.remove_extra_whitespaces = False
    encoder, decoder = (
        SentencePieceProcessor(model_proto=changed.SerializeToString())
        for changed in (encoding, decoding)
    )
    return encoder, decoder, model


def _end_of_text(model: Any) -> int | None:
    """Return the id of the token between documents: the end-of-sentence symbol if the model has
    one, otherwise the first user-defined symbol, if any."""
    symbols = {piece.piece: (i, piece.type) for i, piece in enumerate(model.pieces)}
    eos, kind = symbols.get(model.trainer_spec.eos_piece, (-1, NORMAL))
    if kind == CONTROL:
        return eos
    return min((i for i, kind in symbols.values() if kind == USER_DEFINED), default=None)


def _runs(ids: Iterable[int], size: int) -> Iterator[tuple[bool, list[int]]]:
    """Divide ids into runs of known and of unknown ids. Yield pairs: whether the vocabulary has the
    ids of the run, and the run."""
    run: list[int] = []
    known = True
    for token in ids:
        if (0 <= token < size) != known:
            yield known, run
            known, run = not known, []
        run.append(token)
    yield known, run


TOKENIZER = SentencePiece
