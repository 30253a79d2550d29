"""From documents to a corpus: tokenise once, keep the ids, cut them into samples.

Text is read in pieces and ids are written as they come, so memory does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.documents import Documents
from engine.data.source import TOKENS, Corpus, SourceRequest
from engine.data.split import split_tokens
from engine.data.token_cache import Build, Write, load_or_build
from engine.data.tokenizer import Piece, Tokenizer, dump, load, tokenizer_type
from engine.errors import UserError

FORMAT = 1  # raise it when the same text comes to be other ids
# Text that offers no boundary for this long is cut anyway: memory stays bounded, and at most one
# token in as many characters differs.
MAX_UNBROKEN_LENGTH = 1 << 24  # characters


def build_corpus(documents: Documents, request: SourceRequest) -> Corpus:
    """The corpus that these documents make.

    Raises:
        UserError: the text is too short, the cache cannot be used.
    """
    name = request.tokenizer
    content = {
        "format": FORMAT,
        "kind": documents.kind,
        "content": documents.digest,
        "bytes": documents.size,
        "tokenizer": name,
    }
    fingerprint = _digest(content)
    path = request.cache / f"{name}-{fingerprint[:32]}{TOKENS}"
    if not path.exists():  # all ranks say so: one will build, and it may not be the one heard
        request.notify(
            f"tokenising {documents.name} ({documents.size / 1e6:,.1f} MB) by {name}, once; "
            f"the tokens are kept in {request.cache}"
        )
    file = load_or_build(path, _builder(documents, request), start=request.start)
    tokenizer = load(file.about["tokenizer"])
    train, validation = split_tokens(
        file.ids, validation=request.validation, seq_len=request.seq_len, name=documents.name
    )
    return Corpus(
        train=train,
        validation=validation,
        tokenizer=tokenizer,
        description=(
            f"{documents.name}: {len(file.ids):,} tokens by {name}, vocabulary {tokenizer.size:,}"
        ),
        fingerprint=_digest(
            [fingerprint, request.seq_len, request.validation, tokenizer.state(), len(file.ids)]
        ),
    )


def _builder(documents: Documents, request: SourceRequest) -> Build:
    def build(write: Write) -> tuple[str, dict[str, Any]]:
        tokenizer = tokenizer_type(request.tokenizer).fit(documents.pieces())
        dtype = "<u2" if tokenizer.size <= 1 << 16 else "<u4"
        empty = True
        for ids in encode_stream(documents.pieces(), tokenizer):
            if len(ids):
                empty = False
                _check_ids(ids, tokenizer, request)
                write(ids.astype(dtype))
        if empty:
            raise UserError(f"{documents.name} holds no text")
        return dtype, {"tokenizer": dump(request.tokenizer, tokenizer)}

    return build


def encode_stream(pieces: Iterator[Piece], tokenizer: Tokenizer) -> Iterator[NDArray[np.uint32]]:
    """Ids of a text that comes in pieces: the same as if it came in one."""
    rest = ""
    for piece in pieces:
        if piece is None:
            assert tokenizer.end_of_text is not None, "fit saw this end of a document"
            yield tokenizer.encode(rest)
            yield np.array([tokenizer.end_of_text], np.uint32)
            rest = ""
        else:
            rest += piece
            boundary = tokenizer.boundary(rest) or (
                len(rest) if len(rest) >= MAX_UNBROKEN_LENGTH else 0
            )
            yield tokenizer.encode(rest[:boundary])
            rest = rest[boundary:]
    yield tokenizer.encode(rest)


def _check_ids(ids: NDArray[np.uint32], tokenizer: Tokenizer, request: SourceRequest) -> None:
    largest = int(ids.max())
    if largest >= tokenizer.size:
        raise UserError(
            f"data.tokenizer={request.tokenizer!r} gave the token id {largest}, out of its own "
            f"range 0 to {tokenizer.size - 1}"
        )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
