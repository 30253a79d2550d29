"""Requests to sources, the tokens of a corpus, and builders of token files."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.batches.windows import Windows
from engine.data.images.codebook import Codebook
from engine.data.source import Corpus, SourceRequest
from engine.data.token_files.token_cache import Write
from engine.data.tokenizer import Tokenizer

IDS = np.arange(5000, dtype="<u2")
Ask = Callable[..., SourceRequest]


def tokenizer_of(corpus: Corpus) -> Tokenizer:
    assert corpus.tokenizer is not None
    assert not isinstance(corpus.tokenizer, Codebook)
    return corpus.tokenizer


def ids_of(corpus: Corpus) -> NDArray[Any]:
    """Return all token ids [n] of a corpus: of the training split, then of the validation split."""
    assert isinstance(corpus.train, Windows)
    assert isinstance(corpus.validation, Windows)
    splits = (corpus.train.tokens, corpus.validation.tokens)
    return np.concatenate([tokens[np.arange(len(tokens))] for tokens in splits])


def text_of(corpus: Corpus) -> str:
    return tokenizer_of(corpus).decode(ids_of(corpus))


def build_ids(write: Write) -> tuple[str, dict[str, str]]:
    """Write IDS to a token file, in two parts."""
    write(IDS[:1234])
    write(IDS[1234:])
    return "<u2", {"said": "ü"}


def build_backwards(write: Write) -> tuple[str, dict[str, str]]:
    """Write IDS to a token file, in reverse order."""
    write(IDS[::-1])
    return "<u2", {}
