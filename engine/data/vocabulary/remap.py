"""Maps a corpus to the token ids that a model was trained with, and extends its vocabulary.

Tokens are cached with the vocabulary of their own text, so an id can mean another character in
another text. A model must keep the meaning of the ids it was trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from json import dumps
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data import tokenizer
from engine.data.images.codebook import Codebook
from engine.data.images.load_codebook import load_any
from engine.data.source import Corpus, SlidingSplit, Split
from engine.errors import UserError
from models.parallel.targets import IGNORED

MAX_LISTED = 10  # tokens in a message


@dataclass(frozen=True)
class RemappedSplit:
    """A split with every id i replaced by ``table[i]``."""

    split: Split
    table: NDArray[np.int64]

    @property
    def seq_len(self) -> int:
        return self.split.seq_len

    @property
    def samples(self) -> int | None:
        return self.split.samples

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids, targets = self.split.batch(indices)
        ignored = targets == IGNORED
        return self.table[ids], np.where(
            ignored, IGNORED, self.table[np.where(ignored, 0, targets)]
        )

    def count_targets(self, indices: NDArray[np.int64]) -> int:
        return self.split.count_targets(indices)


class RemappedSlidingSplit(RemappedSplit):
    """A ``SlidingSplit``, remapped."""

    split: SlidingSplit

    def sliding(self, stride: int) -> RemappedSplit:
        return RemappedSplit(self.split.sliding(stride), self.table)


def remapped(split: Split, table: NDArray[np.int64]) -> RemappedSplit:
    """Return a split with every id i replaced by ``table[i]``."""
    kind = RemappedSlidingSplit if isinstance(split, SlidingSplit) else RemappedSplit
    return kind(split, table)


def is_other_kind(corpus: Corpus, saved: dict[str, Any] | None) -> bool:
    """Return whether the corpus and the saved tokenizer are of different types. Ids that stand for
    no text match every type."""
    if corpus.tokenizer is None or saved is None:
        return False
    return type(corpus.tokenizer) is not type(load_any(saved))


def use_saved_ids(corpus: Corpus, saved: dict[str, Any] | None) -> tuple[Corpus, list[str]]:
    """Map the corpus to the ids of a saved tokenizer of the same type. Return the mapped corpus,
    and the tokens that the saved tokenizer lacks. These get new ids, in this order, after the saved
    ids.

    Raises UserError for images of another codebook: their ids cannot be mapped.
    """
    if corpus.tokenizer is None or saved is None:
        return corpus, []
    if isinstance(corpus.tokenizer, Codebook):
        Codebook.load(saved).require_like(corpus.tokenizer)
        return corpus, []
    known = tokenizer.load(saved)
    joined, table = known.joined(corpus.tokenizer)
    new = [joined.decode([i]) for i in range(known.size, joined.size)]
    if joined.state() == corpus.tokenizer.state():
        return corpus, new
    digest = sha256(dumps([corpus.fingerprint, joined.state()]).encode()).hexdigest()
    return (
        corpus.with_splits(
            lambda split: remapped(split, table), tokenizer=joined, fingerprint=digest
        ),
        new,
    )


def vocabulary_size(corpus: Corpus, saved: dict[str, Any] | None = None) -> int:
    """Return the number of ids of the corpus's tokenizer, joined with a ``saved`` one of the same
    type. Raises UserError if the corpus has none."""
    if not is_other_kind(corpus, saved):
        corpus, _ = use_saved_ids(corpus, saved)
    if corpus.tokenizer is None:
        raise UserError(
            f"model.vocab_size is to be the number of ids of a tokenizer, and the data "
            f"({corpus.description}) has none; set a number"
        )
    return corpus.tokenizer.size


def corpus_for_model(
    corpus: Corpus,
    saved: dict[str, Any] | None = None,
    *,
    vocab_size: int,
    cite: Callable[[str], str],
    path: object = None,
    remedy: str = "set",
    extend: bool = True,
) -> tuple[Corpus, list[str]]:
    """Map the corpus to the ids of the run's model. Return it and lines about new tokens.

    Args:
        saved: tokenizer of the weights that the run starts from; None: it starts from random ones.
        vocab_size: of the model.
        cite: as ``Plan.cite``.
        path: path of those weights, for messages.
        remedy: precedes ``model.vocab_size=N`` in the message for a vocabulary that is too small.
        extend: whether tokens that the saved tokenizer lacks get new ids.

    Raises:
        UserError: the tokenizers are of different types, the model's vocabulary is too small, or
            the saved tokenizer lacks a token and ``extend`` is False.
    """
    if is_other_kind(corpus, saved):
        assert saved is not None
        assert corpus.tokenizer is not None
        if tokenizer.IMAGES in (saved["type"], corpus.tokenizer.state().get("type")):
            kind = "pixels" if saved["type"] == tokenizer.IMAGES else "text"
            raise UserError(
                f"{cite('data.type')} has other tokens than {path}, whose tokens are {kind}; "
                f"choose a data.type of {kind}"
            )
        raise UserError(
            f"{cite('data.tokenizer')} differs from the tokenizer of {path}, {saved['type']!r}; "
            f"set data.tokenizer={saved['type']!r}"
        )
    mapped, new = use_saved_ids(corpus, saved)
    if new and not extend:
        raise UserError(
            f"{corpus.description}: {path} has no ids for {list_tokens(new)}; set data.path=... to "
            "text without them"
        )
    size = 0 if mapped.tokenizer is None else mapped.tokenizer.size
    if size > vocab_size:
        lacking = f", of which {path} lacks {list_tokens(new)}" if new else ""
        raise UserError(
            f"{cite('model.vocab_size')} is too small for {size:,} tokens{lacking} "
            f"({corpus.description}); {remedy} model.vocab_size={size}"
        )
    return mapped, [_new_tokens_line(new, size, path)] if new else []


def _new_tokens_line(new: list[str], size: int, path: object) -> str:
    """Return the line on ``new`` tokens, the last of the ``size`` ids, which ``path`` lacks."""
    first = size - len(new)
    got = f"token in the data: {list_tokens(new)} gets id {first}"
    if len(new) > 1:
        got = f"tokens in the data: {list_tokens(new)} get ids {first} to {size - 1}"
    return f"new {got}; the {first} ids of {path} keep their meaning"


def list_tokens(tokens: list[str]) -> str:
    """Format tokens for a message: the first few, and how many there are."""
    more = f" ... ({len(tokens):,} tokens)" if len(tokens) > MAX_LISTED else ""
    return ", ".join(map(repr, tokens[:MAX_LISTED])) + more
