"""Batches for the loop: what each data-parallel rank reads in each step.

Step s (from 1) consumes samples (s - 1) G to s G - 1 of the order, G = B x D x A: the batch size
a rank, the data-parallel ranks, the rounds of accumulation. Within a step they go by (round,
data-parallel rank, sample). The ranks of one model read the same. A run that was resumed goes on
from its place in the order, which is its epochs so far times the samples of an epoch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine.data.consumed import Consumed
from engine.data.sampler import Sampler
from engine.data.source import Corpus, SourceRequest, Split, open_corpus
from engine.errors import UserError
from models.parallel.targets import IGNORED

if TYPE_CHECKING:
    from engine.config.schema import Settings

Batch = tuple[Tensor, Tensor]
"""ids and targets, int64 [samples, seq_len]; the loss skips targets of IGNORED."""


@dataclass(frozen=True, kw_only=True)
class EvalBatches:
    """The first ``samples`` of a split in their own order, each once, ``batch_size`` at a time on
    each of ``data_size`` data-parallel ranks."""

    split: Split
    samples: int
    batch_size: int
    data_size: int

    @property
    def batches(self) -> int:
        """How many calls of ``batch`` make one sweep; 0 if there are no samples."""
        return -(-self.samples // (self.batch_size * self.data_size))

    @property
    def targets(self) -> int:
        """How many targets count, over all batches and ranks."""
        return self.split.count_targets(np.arange(self.samples))

    def __str__(self) -> str:
        held = self.split.samples
        if self.samples == held:
            return f"all {held:,} samples"
        return f"the first {self.samples:,} of {held:,} samples" if held else "no samples"

    def batch(self, i: int, data_rank: int) -> Batch:
        """A data-parallel rank's share of batch i (from 0); places past the last sample hold ones
        that count nothing."""
        assert 0 <= i < self.batches
        assert 0 <= data_rank < self.data_size
        first = (i * self.data_size + data_rank) * self.batch_size
        last = min(first + self.batch_size, self.samples)
        ids, targets = _read(self.split, np.arange(first, last))
        return pad_samples(ids, targets, self.batch_size, at_least=1)


class TrainBatches:
    """The batches of one run, at random access: nothing is carried from one call to the next."""

    def __init__(
        self,
        corpus: Corpus,
        *,
        seed: int,
        batch_size: int,
        data_size: int = 1,
        rounds: int = 1,
        validation_batches: int | None = None,
    ) -> None:
        """``validation_batches`` counts global batches of G samples; None is all there is."""
        self.corpus = corpus
        self._before, self._place = Consumed(), 0  # before these batches; where they begin
        self._batch_size, self._data_size, self._rounds = batch_size, data_size, rounds
        self._sampler = Sampler(corpus.train.samples, seed)
        held_out = corpus.validation.samples
        assert held_out is not None, "validation ends"
        limit = math.inf if validation_batches is None else validation_batches * self.global_batch
        # In samples, not in calls: layouts that accumulate more validate on the same ones.
        self.validation = self.eval_batches(corpus.validation, int(min(held_out, limit)))

    def eval_batches(self, split: Split, samples: int) -> EvalBatches:
        """The first ``samples`` of a split, in batches like those of training."""
        return EvalBatches(
            split=split,
            samples=samples,
            batch_size=self._batch_size,
            data_size=self._data_size,
        )

    @property
    def global_batch(self) -> int:
        """G, samples a step."""
        return self._batch_size * self._data_size * self._rounds

    def with_corpus(self, corpus: Corpus) -> TrainBatches:
        """The same of the same samples by other ids."""
        other = copy.copy(self)
        other.corpus = corpus
        other.validation = replace(self.validation, split=corpus.validation)
        return other

    def resumed_at(self, consumed: Consumed) -> TrainBatches:
        """The batches of a run that has consumed so much before, in global batches of any size.

        Of the same data none of the rest is skipped or read twice. Of other data the same fraction
        of an epoch is left.
        """
        rest, samples = copy.copy(self), self.corpus.train.samples
        rest._before = consumed
        rest._place = consumed.samples if samples is None else round(consumed.epochs * samples)
        return rest

    def consumed(self, step: int) -> Consumed:
        """What was consumed by the end of ``step``, since the run began."""
        before, split = self._before, self.corpus.train
        new = (step - before.step) * self.global_batch
        return Consumed(
            step=step,
            samples=before.samples + new,
            tokens=before.tokens + new * split.seq_len,
            epochs=before.epochs if split.samples is None else self._end_of(step) / split.samples,
        )

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that the first sample of ``step`` is in. Raises UserError where data
        never ends."""
        samples = self.corpus.train.samples
        if samples is None:
            raise UserError(
                "lr_scheduler.by='epoch' needs data that ends; here: lr_scheduler.by='step'"
            )
        return self._end_of(step - 1) // samples

    def steps(self, epochs: int) -> int | None:
        """Steps until every sample was consumed ``epochs`` times. None where they never end."""
        samples = self.corpus.train.samples
        if samples is None:
            return None
        return self._before.step + -(-max(0, epochs * samples - self._place) // self.global_batch)

    def _end_of(self, step: int) -> int:
        """The place in the order after the last sample of ``step``."""
        return self._place + (step - self._before.step) * self.global_batch

    def batch(self, step: int, round: int, data_rank: int) -> Batch:
        """What a data-parallel rank reads in a round (from 0) of a step (from 1)."""
        assert step > self._before.step
        assert 0 <= round < self._rounds
        assert 0 <= data_rank < self._data_size
        before = self._end_of(step - 1)
        share = (round * self._data_size + data_rank) * self._batch_size
        return _read(self.corpus.train, self._sampler.order(before + share, self._batch_size))

    def targets(self, step: int) -> int:
        """How many targets of the step's global batch are not IGNORED."""
        indices = self._sampler.order(self._end_of(step - 1), self.global_batch)
        return self.corpus.train.count_targets(indices)


def _read(split: Split, indices: NDArray[np.int64]) -> Batch:
    ids, targets = split.batch(indices)
    return (
        torch.from_numpy(np.ascontiguousarray(ids)),
        torch.from_numpy(np.ascontiguousarray(targets)),
    )


def pad_samples(ids: Tensor, targets: Tensor, multiple: int, *, at_least: int = 0) -> Batch:
    """Append samples that count nothing (ids 0, targets IGNORED) up to a multiple of ``multiple``.

    ``ids`` and ``targets`` are [samples, seq_len]; the result has max(samples, at_least) of them,
    rounded up. Returned as they are when nothing is missing.
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
    """The batches that ``settings`` ask for. ``cache`` is used where they name no folder;
    ``start`` names this start of the run, the same on all ranks, of which one verifies the tokens.

    Raises:
        UserError: the data cannot be used; says why.
    """
    data = settings.data
    request = SourceRequest(
        path=data.path,
        start=start,
        key=data.key,
        tokenizer=data.tokenizer,
        validation=data.validation,
        seq_len=settings.seq_len,
        vocab_size=settings.model.vocab_size,
        seed=settings.seed,
        cache=Path(data.cache) if data.cache else cache,
        notify=notify,
    )
    return TrainBatches(
        open_corpus(data.type, request),
        seed=settings.seed,
        batch_size=settings.batch_size,
        data_size=data_size,
        rounds=settings.gradient_accumulation,
        validation_batches=settings.eval.batches,
    )
