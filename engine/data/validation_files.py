"""Opens the data of a run with other files to validate on: those of data.validation_path."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from engine.data.source import Corpus, SourceRequest, open_corpus
from engine.data.tokenizer import dump
from engine.data.vocabulary.remap import list_tokens, use_saved_ids
from engine.errors import UserError


def open_with_validation(
    source: str, request: SourceRequest, validation_path: str | tuple[str, ...] | None
) -> Corpus:
    """Open the corpus of a source. With a ``validation_path``, the split 'validation' is all files
    of that path, encoded with the token ids of the training data.

    Raises:
        UserError: the data cannot be used, or the training data lacks a token of the other files.
    """
    corpus = open_corpus(source, request)
    if validation_path is None:
        return corpus
    if corpus.tokenizer is None:
        raise UserError(
            f"data.validation_path={validation_path!r}: data.type={source!r} has no text; choose "
            "one of its splits by eval.split"
        )
    saved = dump(corpus.tokenizer)
    other_request = replace(
        request, path=validation_path, validation=0.0, truncate=1.0, trained_with=saved
    )
    try:
        other = open_corpus(source, other_request)
    except UserError as error:
        raise UserError(_with_own_name(str(error))) from None
    encoded, new = use_saved_ids(other, saved)
    if new:
        raise UserError(
            f"{_with_own_name(other.description)}: the training data ({corpus.description}) has no "
            f"ids for {list_tokens(new)}; choose files without them"
        )
    prints = json.dumps([corpus.fingerprint, encoded.fingerprint])
    return replace(
        corpus,
        validation=encoded.train,
        description=f"{corpus.description}; validation: {_with_own_name(other.description)}",
        fingerprint=hashlib.sha256(prints.encode()).hexdigest(),
    )


def _with_own_name(text: str) -> str:
    """Replace data.path by data.validation_path in a text about the files to validate on."""
    return text.replace("data.path", "data.validation_path")
