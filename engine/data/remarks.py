"""Remarks on data and settings that do not go well together, known once the data is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.config.max_samples import max_samples
from engine.config.resolve import Precedence
from models.config import GPTConfig
from models.parameters import parameter_count

if TYPE_CHECKING:
    from engine.data.loader import TrainBatches
    from engine.data.tokenizer import Tokenizer
    from engine.plan import Plan

FAR_LARGER = 2  # a vocabulary that is so many times the tokenizer's is more than padding


def data_remarks(plan: Plan, batches: TrainBatches, *, begins: bool) -> Iterator[str]:
    """Yield a line for each. ``begins``: the run has no weights yet, so its model may still be
    another."""
    samples, taken = batches.corpus.train.samples, batches.global_batch
    limit = max_samples(plan.settings)
    is_told = limit is not None and limit < taken  # by a rule
    if samples is not None and samples < taken and not is_told:
        yield (
            f"warning: {plan.cite('batch_size')}: a step takes {taken:,} samples and the data has "
            f"{samples:,} of {plan.settings.seq_len} tokens to train on, so it reads each up to "
            f"{-(-taken // samples)} times; take a smaller batch or SEQ_LEN, or more data"
        )
    if begins and batches.corpus.tokenizer is not None:
        yield from _on_vocabulary(plan, batches.corpus.tokenizer)


def _on_vocabulary(plan: Plan, tokenizer: Tokenizer) -> Iterator[str]:
    """A vocabulary of the model far larger than the tokenizer's trains ids that never occur."""
    sizes = GPTConfig.of(plan.settings.model)
    if sizes.vocab_size < FAR_LARGER * tokenizer.size:
        return
    stated = plan.source_of.get("model.vocab_size")
    by_user = stated is not None and stated.precedence > Precedence.IMPLIED
    fewer = parameter_count(replace(sizes, vocab_size=tokenizer.size))
    yield (
        f"{'note' if by_user else 'warning'}: {plan.cite('model.vocab_size')}, and "
        f"data.tokenizer={plan.settings.data.tokenizer!r} has {tokenizer.size:,} tokens: the other "
        f"ids never occur, and {parameter_count(sizes) - fewer:,} of the "
        f"{parameter_count(sizes):,} parameters are theirs; model.vocab_size={tokenizer.size} "
        "leaves them out"
    )
