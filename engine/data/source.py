"""Where samples come from: every file in ``engine/data/sources`` is a source, by its file name.

A source is a module with one function, ``open_corpus(request: Request) -> Corpus``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine import discover
from engine.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """What a source is asked for. A field is named after its setting."""

    path: str | tuple[str, ...] | None  # None: the source's own corpus, if it has one
    tokenizer: str
    validation: float  # the share of the tokens kept for validation, 0 to below 1
    seq_len: int
    vocab_size: int  # of the model, for a source without a tokenizer
    seed: int
    cache: Path  # folder for tokenised text
    start: str | None = None  # names this start of the run, the same on all ranks
    key: str = "text"  # of the objects in JSON
    notify: Callable[[str], None] = lambda line: None  # told before work that takes long


class Split(Protocol):
    """Samples to train on or to validate with, read at random by index."""

    @property
    def seq_len(self) -> int:
        """Tokens in a sample."""

    @property
    def samples(self) -> int | None:
        """How many there are: an epoch. None where they never end."""

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(ids, targets) [n, seq_len] of n samples: a target is the id after, or IGNORED."""

    def count_targets(self, indices: NDArray[np.int64]) -> int:
        """How many targets of these samples are not IGNORED; cheap."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What a source gives."""

    train: Split
    validation: Split  # never without end
    tokenizer: Tokenizer | None  # None: the tokens stand for no text
    description: str  # a line for the user
    fingerprint: str  # equal on two ranks if and only if they read the same samples


def names() -> list[str]:
    """The sources there are; imports none of them."""
    return discover.module_names("engine.data.sources")


def open_corpus(name: str, request: SourceRequest) -> Corpus:
    """The corpus of the source ``name``.

    Raises:
        UserError: there is no such source, or the data cannot be used; says why.
    """
    if name not in names():
        raise UserError(f"data.type={name!r} is not a source; there are: {', '.join(names())}")
    corpus = discover.load("engine.data.sources", name).open_corpus(request)
    assert isinstance(corpus, Corpus)
    return corpus


TOKENS = ".tokens"
"""The ending of a token file's name in the cache."""


def default_cache(environ: Mapping[str, str]) -> Path:
    """The user's cache folder, by the XDG base directory specification (which ignores relative)."""
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path(environ.get("HOME") or Path.home()) / ".cache"
    return base / "cuboid"
