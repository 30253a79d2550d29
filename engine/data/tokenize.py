"""Turns documents into a corpus: tokenises them once, caches the ids, splits them into samples.

Text is read and ids are written as streams, so memory does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.batches.train_validation_split import split_tokens
from engine.data.input_files.data_file import DataFile
from engine.data.input_files.documents import Documents, truncated
from engine.data.source import TOKENS, Corpus, SourceRequest
from engine.data.token_files.token_cache import Build, Write, load_or_build, read
from engine.data.tokenizer import Piece, Tokenizer, dump, load, tokenizer_type
from engine.errors import UserError

TOKENIZER_PATH = "data.tokenizer_path"
FORMAT = 1  # increase it when the same text is encoded to other ids than before
# Text without a token boundary for this long is split anyway: memory stays bounded, and at most one
# token per this many characters differs.
MAX_UNBROKEN_LENGTH = 1 << 24  # characters


def vocabulary_size(documents: Documents, request: SourceRequest) -> int:
    """Return the number of ids of the tokenizer of ``documents``: from the cached tokens, else by
    reading the text. Writes no tokens. Raises UserError if the text cannot be read."""
    documents = truncated(documents, request.truncate)
    cached = read(_token_path(documents, request)[0], verify=False)
    if cached is not None:
        return load(cached.about["tokenizer"]).size
    return tokenizer_type(request.tokenizer).fit(documents.pieces(), request.tokenizer_path).size


def build_corpus(documents: Documents, request: SourceRequest) -> Corpus:
    """Return the corpus of ``documents``; tokenise them if the cache does not have their tokens.

    Raises:
        UserError: the text is too short or the cache cannot be used.
    """
    name = request.tokenizer
    documents = truncated(documents, request.truncate)
    path, fingerprint = _token_path(documents, request)
    if not path.exists():  # on all ranks: any of them may build it, and not all of them print
        request.notify(
            f"tokenising {documents.name} ({documents.size / 1e6:,.1f} MB) by {name}, once; "
            f"the tokens are cached in {request.cache}"
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


def _token_path(documents: Documents, request: SourceRequest) -> tuple[Path, str]:
    """Return the path of the cached tokens, and the fingerprint of their texts and tokenizer."""
    content = {
        "format": FORMAT,
        "kind": documents.kind,
        "content": documents.digest,
        "bytes": documents.size,
        "tokenizer": request.tokenizer,
    }
    if request.tokenizer_path is not None:
        content["tokenizer_file"] = DataFile(request.tokenizer_path, TOKENIZER_PATH).digest
    fingerprint = _digest(content)
    return request.cache / f"{request.tokenizer}-{fingerprint[:32]}{TOKENS}", fingerprint


def _builder(documents: Documents, request: SourceRequest) -> Build:
    def build(write: Write) -> tuple[str, dict[str, Any]]:
        tokenizer = tokenizer_type(request.tokenizer).fit(
            documents.pieces(), request.tokenizer_path
        )
        dtype = "<u2" if tokenizer.size <= 1 << 16 else "<u4"
        empty = True
        for ids in encode_stream(documents.pieces(), tokenizer):
            if len(ids):
                empty = False
                _check_ids(ids, tokenizer, request)
                write(ids.astype(dtype))
        if empty:
            raise UserError(f"{documents.name} contains no text; name files with text")
        return dtype, {"tokenizer": dump(tokenizer)}

    return build


def encode_stream(pieces: Iterator[Piece], tokenizer: Tokenizer) -> Iterator[NDArray[np.uint32]]:
    """Encode a text in pieces, to the same ids as in one piece."""
    for text in unbroken(pieces, tokenizer):
        if text is None:
            yield np.array([tokenizer.end_of_text], np.uint32)
        else:
            yield tokenizer.encode(text)


def unbroken(pieces: Iterator[Piece], tokenizer: Tokenizer) -> Iterator[Piece]:
    """Divide a text into new pieces, so that no token spans two pieces."""
    rest = ""
    for piece in pieces:
        if piece is None:
            assert tokenizer.end_of_text is not None, "fit saw the end of a document"
            yield rest
            yield None
            rest = ""
        else:
            rest += piece
            boundary = tokenizer.boundary(rest) or (
                len(rest) if len(rest) >= MAX_UNBROKEN_LENGTH else 0
            )
            yield rest[:boundary]
            rest = rest[boundary:]
    yield rest


def _check_ids(ids: NDArray[np.uint32], tokenizer: Tokenizer, request: SourceRequest) -> None:
    largest = int(ids.max())
    if largest >= tokenizer.size:
        raise UserError(
            f"data.tokenizer={request.tokenizer!r} gave the token id {largest}, out of its own "
            f"range 0 to {tokenizer.size - 1}; choose another tokenizer"
        )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
