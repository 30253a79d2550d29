"""Helpers of the tests of sources: make a request, and list the tokens of a corpus."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.source import Corpus, SourceRequest
from engine.data.split import Windows
from engine.data.tokenizer import Tokenizer

Ask = Callable[..., SourceRequest]


def tokenizer_of(corpus: Corpus) -> Tokenizer:
    assert corpus.tokenizer is not None
    return corpus.tokenizer


def ids_of(corpus: Corpus) -> NDArray[Any]:
    """Return all token ids [n] of a corpus: of the training split, then of the validation split."""
    assert isinstance(corpus.train, Windows)
    assert isinstance(corpus.validation, Windows)
    return np.concatenate([corpus.train.tokens, corpus.validation.tokens])


def text_of(corpus: Corpus) -> str:
    return tokenizer_of(corpus).decode(ids_of(corpus))
