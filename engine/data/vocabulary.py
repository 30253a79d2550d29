"""Reads a corpus by the ids that a model was trained with: its vocabulary stays, and may grow.

Tokens are kept by the vocabulary of their own text, so the same ids can mean other characters in
another text. A model goes on with the meaning it was trained with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from json import dumps
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.data import tokenizer
from engine.data.source import Corpus, Split
from engine.errors import UserError
from models.parallel.targets import IGNORED

if TYPE_CHECKING:
    from engine.plan import Plan

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


def is_other_kind(corpus: Corpus, saved: dict[str, Any] | None) -> bool:
    """Whether a corpus has ids by another kind of tokenizer than the saved one. Ids that stand for
    no text are of every kind."""
    if corpus.tokenizer is None or saved is None:
        return False
    return type(corpus.tokenizer) is not type(tokenizer.load(saved))


def use_saved_ids(corpus: Corpus, saved: dict[str, Any] | None) -> tuple[Corpus, list[str]]:
    """The corpus by the ids of a saved tokenizer of the same kind, and the tokens of its text that
    the saved one lacks, which get the ids after the saved ones, in this order."""
    if corpus.tokenizer is None or saved is None:
        return corpus, []
    known = tokenizer.load(saved)
    joined, table = known.joined(corpus.tokenizer)
    new = [joined.decode([i]) for i in range(known.size, joined.size)]
    if joined.state() == corpus.tokenizer.state():
        return corpus, new
    digest = sha256(dumps([corpus.fingerprint, joined.state()]).encode()).hexdigest()
    return (
        replace(
            corpus,
            train=RemappedSplit(corpus.train, table),
            validation=RemappedSplit(corpus.validation, table),
            tokenizer=joined,
            fingerprint=digest,
        ),
        new,
    )


def corpus_for_model(
    plan: Plan,
    corpus: Corpus,
    saved: dict[str, Any] | None = None,
    *,
    path: object = None,
    remedy: str = "set",
) -> tuple[Corpus, list[str]]:
    """The corpus by the ids of the run's model, and lines on what is new in it. ``saved`` is the
    tokenizer of the weights at ``path``, which the run goes on with, if it has some; ``remedy``
    goes before the vocab_size that would be large enough.

    Raises:
        UserError: the ids would stand for other text, or the model has no room for new tokens.
    """
    if is_other_kind(corpus, saved):
        assert saved is not None
        raise UserError(
            f"{plan.cite('data.tokenizer')}, and the ids of {path} are by {saved['type']!r}: set "
            f"data.tokenizer={saved['type']!r}"
        )
    found, new = use_saved_ids(corpus, saved)
    size = 0 if found.tokenizer is None else found.tokenizer.size
    if size > plan.settings.model.vocab_size:
        tokens = f"{list_tokens(new)}, in the data and not in {path}" if new else f"{size:,} tokens"
        raise UserError(
            f"{plan.cite('model.vocab_size')} has no room for {tokens} ({corpus.description}): "
            f"{remedy} model.vocab_size={size}"
        )
    if not new:
        return found, []
    first = size - len(new)
    return found, [
        f"new in the data: {list_tokens(new)}; their ids are {first} to {size - 1}, and the "
        f"{first} ids "
        f"of {path} stay as they are"
    ]


def list_tokens(tokens: list[str]) -> str:
    """Tokens for a message: the first few, and how many there are."""
    more = f" ... ({len(tokens):,} tokens)" if len(tokens) > MAX_LISTED else ""
    return ", ".join(map(repr, tokens[:MAX_LISTED])) + more
