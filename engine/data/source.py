"""Registry of data sources: every module in ``engine/data/sources`` is one, named by its file.

A source is a module with a function ``open_corpus(request: SourceRequest) -> Corpus``, and if its
data is text, ``open_documents(request: SourceRequest) -> Documents``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from engine import discover
from engine.config.splits import TRAIN, VALIDATION
from engine.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.config.schema import Settings
    from engine.data.images.codebook import Codebook
    from engine.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """The settings of a source; fields are named after settings."""

    path: str | tuple[str, ...] | None  # None: the source's built-in corpus, if it has one
    tokenizer: str
    validation: float  # fraction of the tokens for validation, 0 <= f < 1
    seq_len: int
    vocab_size: int  # of the model, for a source without a tokenizer
    seed: int
    cache: Path  # folder for tokens
    start: str | None = None  # identifies this start of the run, the same on all ranks
    key: str = "text"  # of the text in JSON objects, or of the array in an .npz
    tokenizer_path: str | None = None  # of a tokenizer that has a file
    truncate: float = 1.0  # fraction of the characters that are read, from the first
    global_batch: int = 1  # samples per step over all ranks
    eval_lanes: int = 1  # lanes of a split that is evaluated
    codes: int | None = None  # of an image source: size of its codebook
    codebook: str | None = None  # path of a codebook to use
    trained_with: dict[str, Any] | None = None  # saved tokenizer of the training data, if not it
    pixel_order: int | None = None  # seed of the order of pixels
    variants: int = 1  # of each image to train on, itself included
    notify: Callable[[str], None] = lambda line: None  # called before work that takes long

    @classmethod
    def of(
        cls,
        settings: Settings,
        cache: Path,
        *,
        global_batch: int = 1,
        start: str | None = None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> SourceRequest:
        """Make the request of a config. ``cache``: the folder for tokens, unless data.cache names
        one."""
        data = settings.data
        return cls(
            path=data.path,
            start=start,
            key=data.key,
            codes=data.codes,
            codebook=data.codebook,
            pixel_order=data.pixel_order,
            variants=data.variants,
            tokenizer=data.tokenizer,
            tokenizer_path=data.tokenizer_path,
            truncate=data.truncate,
            global_batch=global_batch,
            eval_lanes=settings.eval.lanes,
            validation=data.validation,
            seq_len=settings.seq_len,
            vocab_size=settings.model.vocab_size,
            seed=settings.seed,
            cache=Path(data.cache) if data.cache else cache,
            notify=notify,
        )


class Split(Protocol):
    """Samples for training or for validation, in random access by index."""

    @property
    def seq_len(self) -> int:
        """Tokens per sample."""

    @property
    def samples(self) -> int | None:
        """Samples per epoch; None: endless."""

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (ids, targets) [n, seq_len] of n samples. A target is the next id, or IGNORED."""

    def count_targets(self, indices: NDArray[np.int64]) -> int:
        """Return how many targets of these samples are not IGNORED, without reading them."""


@runtime_checkable
class SlidingSplit(Split, Protocol):
    """A split whose samples are windows of one row of tokens, so that they can also overlap."""

    def sliding(self, stride: int) -> Split:
        """Return the tokens in windows of seq_len that each begin ``stride`` tokens after the one
        before, up to the one that contains the last token. Targets beyond that token are
        IGNORED."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The data of a run, as a source opens it."""

    train: Split
    validation: Split  # never endless; without samples if nothing is held out
    tokenizer: Tokenizer | Codebook | None  # None: the tokens stand for nothing
    description: str  # one line for the user
    fingerprint: str  # equal on two ranks if and only if they read the same samples, of all splits
    other_splits: Mapping[str, Split] = field(default_factory=dict)
    """Further splits that the source offers, by name, such as "test"; never endless."""
    ordered_by_batch: bool = False
    """Whether the order of the samples depends on the number of samples per step."""

    @property
    def splits(self) -> dict[str, Split]:
        """Return the splits that have samples, by name."""
        named = {TRAIN: self.train, VALIDATION: self.validation, **self.other_splits}
        return {name: split for name, split in named.items() if split.samples != 0}

    def split(self, name: str) -> Split:
        """Return a split by its name; 'validation' may have no samples. Raises UserError if there
        is no such split."""
        if name == VALIDATION:
            return self.validation
        if name not in self.splits:
            raise UserError(
                f"{self.description}: there is no split {name!r} (eval.split, --split); use one of "
                f"{', '.join(self.splits)}"
            )
        return self.splits[name]

    def with_splits(self, change: Callable[[Split], Split], **changes: Any) -> Corpus:
        """Return the corpus with every split replaced by ``change(split)``, and other fields by
        ``changes``."""
        return replace(
            self,
            train=change(self.train),
            validation=change(self.validation),
            other_splits={name: change(split) for name, split in self.other_splits.items()},
            **changes,
        )


def names() -> list[str]:
    """List the sources, without importing any."""
    return discover.module_names("engine.data.sources")


def open_corpus(name: str, request: SourceRequest) -> Corpus:
    """Open the corpus of the source ``name``.

    Raises:
        UserError: there is no such source, or the data cannot be used.
    """
    if name not in names():
        raise UserError(f"data.type={name!r} is not a source; sources: {', '.join(names())}")
    corpus = discover.load("engine.data.sources", name).open_corpus(request)
    assert isinstance(corpus, Corpus)
    return corpus


TOKENS = ".tokens"
"""File name suffix of tokens in the cache."""


def default_cache(environ: Mapping[str, str]) -> Path:
    """Return the user's cache folder by the XDG base directory specification, which ignores a
    relative XDG_CACHE_HOME."""
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path(environ.get("HOME") or Path.home()) / ".cache"
    return base / "cuboid"
