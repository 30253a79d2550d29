"""Batches of a run: the samples that each data-parallel rank reads in each step.

Step s (from 1) consumes samples (s - 1) G to s G - 1 of the order. G = B x D x A: batch size per
rank, data-parallel ranks, rounds of gradient accumulation. Within a step the order is (round,
data-parallel rank, sample). All ranks of one copy of the model read the same samples. A resumed run
continues at its position in the order: epochs consumed so far times samples per epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine.config.splits import VALIDATION
from engine.data.batches.consumed import Consumed
from engine.data.batches.sampler import Sampler
from engine.data.source import Corpus, SourceRequest, Split
from engine.data.validation_files import open_with_validation
from engine.errors import UserError
from models.parallel.targets import IGNORED

if TYPE_CHECKING:
    from engine.config.schema import Settings

Batch = tuple[Tensor, Tensor]
"""ids and targets, int64 [samples, seq_len]; the loss skips targets of IGNORED."""


@dataclass(frozen=True, kw_only=True)
class EvalBatches:
    """The first ``samples`` of a split, each once, in the order of the split."""

    name: str
    """The name of the split."""
    split: Split
    samples: int
    batch_size: int
    """Samples per batch on one data-parallel rank."""
    data_size: int
    """Number of data-parallel ranks."""

    @property
    def batches(self) -> int:
        """Number of batches; 0 if there are no samples."""
        return -(-self.samples // (self.batch_size * self.data_size))

    @property
    def targets(self) -> int:
        """Number of targets that are not IGNORED, over all batches and ranks."""
        return self.split.count_targets(np.arange(self.samples))

    def __str__(self) -> str:
        total = self.split.samples
        which = "samples" if self.name == VALIDATION else f"samples of the split {self.name!r}"
        if total == 0:
            return f"no {which}"
        if self.samples == total:
            return f"all {total:,} {which}"
        return f"the first {self.samples:,}{f' of {total:,}' if total else ''} {which}"

    def batch(self, i: int, data_rank: int) -> Batch:
        """Return a data-parallel rank's part of batch ``i`` (from 0). The last batches are padded
        with samples whose targets are IGNORED."""
        assert 0 <= i < self.batches
        assert 0 <= data_rank < self.data_size
        first = (i * self.data_size + data_rank) * self.batch_size
        last = min(first + self.batch_size, self.samples)
        ids, targets = _read(self.split, np.arange(first, last))
        return pad_samples(ids, targets, self.batch_size, at_least=1)


class TrainBatches:
    """The batches of one run, in random access: no state changes from one call to the next."""

    def __init__(
        self,
        corpus: Corpus,
        *,
        seed: int,
        batch_size: int,
        data_size: int = 1,
        rounds: int = 1,
        validation_split: str = VALIDATION,
        validation_samples: int | None = None,
    ) -> None:
        """Divide ``corpus`` into batches. A validation covers the first ``validation_samples`` of
        its split; None: all.

        Raises UserError if there is no such split, or the whole of an endless one is asked for.
        """
        self.corpus = corpus
        self._before = Consumed()  # before the first of these batches
        self._place = 0  # position of the first of these batches in the order of samples
        self._batch_size, self._data_size, self._rounds = batch_size, data_size, rounds
        self._sampler = Sampler(corpus.train.samples, seed)
        # Counted in samples, so that every layout validates on the same ones
        self.validation = self.eval_batches(validation_split, validation_samples)

    def eval_batches(
        self, name: str, samples: int | None, split: Split | None = None
    ) -> EvalBatches:
        """Return the first ``samples`` of a split (None: all, of a split that is not endless), in
        batches of the size that training uses.

        ``split``: replaces the split ``name``, for example with overlapping samples.

        Raises UserError if there is no such split.
        """
        split = split or self.corpus.split(name)
        limits = [n for n in (split.samples, samples) if n is not None]
        if not limits:
            raise UserError(
                f"the split {name!r} of this data is endless; state a number of samples"
            )
        return EvalBatches(
            name=name,
            split=split,
            samples=min(limits),
            batch_size=self._batch_size,
            data_size=self._data_size,
        )

    @property
    def global_batch(self) -> int:
        """G: samples per step over all ranks."""
        return self._batch_size * self._data_size * self._rounds

    def with_corpus(self, corpus: Corpus) -> TrainBatches:
        """Return these batches, read from ``corpus``: the same samples with other token ids."""
        batches = copy.copy(self)
        batches.corpus = corpus
        batches.validation = replace(self.validation, split=corpus.split(self.validation.name))
        return batches

    def resumed_at(self, consumed: Consumed) -> TrainBatches:
        """Return the remaining batches of a run that has consumed ``consumed``, whatever its global
        batch size was.

        On the same data no sample is skipped or read twice. On other data the same fraction of an
        epoch remains.
        """
        rest, samples = copy.copy(self), self.corpus.train.samples
        rest._before = consumed
        rest._place = consumed.samples if samples is None else round(consumed.epochs * samples)
        return rest

    def consumed(self, step: int, *, epochs: int | None = None) -> Consumed:
        """Return the totals since step 1 of the run, up to the end of ``step``, or of epoch
        ``epochs`` if it ends first."""
        before, split = self._before, self.corpus.train
        new = (step - before.step) * self.global_batch
        if split.samples is not None and epochs is not None:
            new = min(new, epochs * split.samples - self._place)
        return Consumed(
            step=step,
            samples=before.samples + new,
            tokens=before.tokens + new * split.seq_len,
            epochs=before.epochs if split.samples is None else (self._place + new) / split.samples,
        )

    @property
    def per_step(self) -> Consumed:
        """The data that one step consumes."""
        split = self.corpus.train
        return Consumed(
            step=1,
            samples=self.global_batch,
            tokens=self.global_batch * split.seq_len,
            epochs=self.global_batch / split.samples if split.samples else 0.0,
        )

    def ends_interval(self, step: int, epochs: float) -> bool:
        """Return whether a multiple of ``epochs`` epochs ends in ``step``. Raises UserError for
        endless data."""
        samples = self.corpus.train.samples
        if samples is None:
            raise UserError(
                f"{self.corpus.description}: the data is endless, so it has no epochs; set "
                "eval.every or checkpoint.every in place of eval.epochs or checkpoint.epochs"
            )
        interval = Fraction(repr(epochs)) * samples  # exact: 3 x 0.1 is 0.3
        return self._end_of(step) // interval > self._end_of(step - 1) // interval

    def epoch_ended_by(self, step: int) -> int | None:
        """Return the number, from 1, of the last epoch that ends in ``step``; None if none does."""
        samples = self.corpus.train.samples
        if samples is None:
            return None
        before, after = (self._end_of(number) // samples for number in (step - 1, step))
        return after if after > before else None

    def steps(self, epochs: int) -> int | None:
        """Return the number of steps until every sample was consumed ``epochs`` times; None for
        endless data."""
        samples = self.corpus.train.samples
        if samples is None:
            return None
        return self._before.step + -(-max(0, epochs * samples - self._place) // self.global_batch)

    def _end_of(self, step: int) -> int:
        """Return the position in the order after the last sample of ``step``."""
        return self._place + (step - self._before.step) * self.global_batch

    def batch(self, step: int, round: int, data_rank: int) -> Batch:
        """Return a data-parallel rank's samples of a round (from 0) of a step (from 1)."""
        assert step > self._before.step
        assert 0 <= round < self._rounds
        assert 0 <= data_rank < self._data_size
        before = self._end_of(step - 1)
        offset = (round * self._data_size + data_rank) * self._batch_size
        return _read(self.corpus.train, self._sampler.order(before + offset, self._batch_size))

    def targets(self, step: int) -> int:
        """Return how many targets of the step's global batch are not IGNORED."""
        indices = self._sampler.order(self._end_of(step - 1), self.global_batch)
        return self.corpus.train.count_targets(indices)


def _read(split: Split, indices: NDArray[np.int64]) -> Batch:
    ids, targets = split.batch(indices)
    return (
        torch.from_numpy(np.ascontiguousarray(ids)),
        torch.from_numpy(np.ascontiguousarray(targets)),
    )


def pad_samples(ids: Tensor, targets: Tensor, multiple: int, *, at_least: int = 0) -> Batch:
    """Append samples of ids 0 and targets IGNORED up to a multiple of ``multiple``.

    ``ids`` and ``targets`` are [samples, seq_len]; the result has max(samples, at_least) samples,
    rounded up to the multiple. Returns ``ids`` and ``targets`` themselves if no sample is missing.
    """
    missing = -(-max(len(ids), at_least) // multiple) * multiple - len(ids)
    if missing == 0:
        return ids, targets
    return F.pad(ids, (0, 0, 0, missing)), F.pad(targets, (0, 0, 0, missing), value=IGNORED)


def load_batches(
    settings: Settings,
    *,
    data_size: int,
    cache: Path,
    start: str | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> TrainBatches:
    """Open the data of ``settings``; tokenize it if the cache does not have its tokens.

    Args:
        data_size: number of data-parallel ranks.
        cache: folder for tokens, unless data.cache names one.
        start: identifies this start of the run on all ranks, so that one rank verifies the tokens
            for all; None: each verifies them.
        notify: called with a line for the user before work that takes long.

    Raises:
        UserError: the data cannot be used.
    """
    global_batch = settings.batch_size * data_size * settings.gradient_accumulation
    request = SourceRequest.of(
        settings, cache, global_batch=global_batch, start=start, notify=notify
    )
    return TrainBatches(
        open_with_validation(settings.data.type, request, settings.data.validation_path),
        seed=settings.seed,
        batch_size=settings.batch_size,
        data_size=data_size,
        rounds=settings.gradient_accumulation,
        validation_split=settings.eval.split,
        validation_samples=settings.eval.max_samples(
            global_batch=global_batch, seq_len=settings.seq_len
        ),
    )
