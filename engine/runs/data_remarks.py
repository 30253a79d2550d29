"""Warnings about settings that do not suit the data, printed once the data is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.config.max_samples import max_samples
from engine.config.resolve import Precedence
from engine.data.images.codebook import Codebook
from models.config import GPTConfig
from models.parameters import parameter_count

if TYPE_CHECKING:
    from engine.data.batches.loader import TrainBatches
    from engine.data.tokenizer import Tokenizer
    from engine.plan import Plan

FAR_LARGER = 2  # times the tokenizer's size: a larger vocabulary is not explained by padding


def data_remarks(plan: Plan, batches: TrainBatches, *, begins: bool) -> Iterator[str]:
    """Yield a line per warning about settings that do not suit the data. ``begins``: the run starts
    at step 0, so its vocabulary can still be changed."""
    samples, batch = batches.corpus.train.samples, batches.global_batch
    if samples is not None and samples < batch:
        limit = max_samples(plan.settings)
        if limit is None or limit >= batch:  # otherwise a rule of the config has warned
            yield (
                f"warning: {plan.cite('batch_size')}: a step takes {batch:,} samples and the data "
                f"has {samples:,} of {plan.settings.seq_len} tokens to train on, so it reads each "
                f"up to {-(-batch // samples)} times; take a smaller batch or SEQ_LEN, or more data"
            )
    if begins and batches.corpus.tokenizer is not None:
        yield from _on_vocabulary(plan, batches.corpus.tokenizer)


def _on_vocabulary(plan: Plan, tokenizer: Tokenizer | Codebook) -> Iterator[str]:
    """Yield a warning if the vocabulary is far larger than the tokenizer's: the parameters of all
    other ids are unused."""
    config = GPTConfig.of(plan.settings.model)
    if config.vocab_size < FAR_LARGER * tokenizer.size:
        return
    stated = plan.source_of.get("model.vocab_size")
    by_user = stated is not None and stated.precedence > Precedence.IMPLIED
    fewer = parameter_count(replace(config, vocab_size=tokenizer.size))
    tokens = f"data.tokenizer={plan.settings.data.tokenizer!r} has {tokenizer.size:,} tokens"
    if isinstance(tokenizer, Codebook):
        tokens = f"the codebook of the images has {tokenizer.size:,} codes"
    yield (
        f"{'note' if by_user else 'warning'}: {plan.cite('model.vocab_size')}, and "
        f"{tokens}: the other ids never occur, and {parameter_count(config) - fewer:,} of the "
        f"{parameter_count(config):,} parameters are theirs; model.vocab_size={tokenizer.size} "
        "leaves them out"
    )
