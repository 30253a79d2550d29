"""Rules for samples: the batch, its micro-batches and their shards, and the length of the run."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.max_samples import max_samples
from engine.config.rule_context import Finding, RuleContext
from engine.config.schema import user_name
from engine.config.sections.data import ENDLESS_TYPES
from engine.config.value_hints import nearest_multiples
from models.parallel.rows import row_multiple


def batch_divides_into_micro_batches(context: RuleContext) -> Iterator[Finding]:
    """Require BATCH_SIZE to be a multiple of NUM_MICRO_BATCHES: micro-batches have equal sizes."""
    batch, count = context.settings.batch_size, context.settings.num_micro_batches
    if batch % count:
        yield context.error(
            "batch_size",
            f"{context.cite('batch_size')} is not a multiple of "
            f"{context.cite('num_micro_batches')}; nearest: {nearest_multiples(batch, count)}",
        )


def rows_are_sharded_evenly(context: RuleContext) -> Iterator[Finding]:
    """Note that a micro-batch is padded with rows if its tokens cannot be sharded evenly."""
    settings = context.settings
    if settings.batch_size % settings.num_micro_batches:
        return
    samples = settings.batch_size // settings.num_micro_batches
    tokens = samples * settings.seq_len
    rows = context.layout.row_order(samples, settings.seq_len).rows
    if rows > tokens:
        yield context.note(
            "batch_size",
            f"{context.cite('batch_size', 'num_micro_batches', 'seq_len')}: the {tokens:,} tokens "
            f"of a micro-batch are padded to {rows:,} rows, a multiple of "
            f"{row_multiple(context.mode, context.axes)}, for "
            f"{context.cite('mode', 'tensor_parallel')}",
        )


def samples_fit_the_positions(context: RuleContext) -> Iterator[Finding]:
    """Require SEQ_LEN to be at most model.block_size: each token of a sample needs a position."""
    seq_len, positions = context.settings.seq_len, context.settings.model.block_size
    if seq_len > positions:
        yield context.error(
            "seq_len",
            f"{context.cite('seq_len')} is more than the number of positions, "
            f"{context.cite('model.block_size')}; set SEQ_LEN={positions} or "
            f"model.block_size={seq_len}",
        )


def run_ends(context: RuleContext) -> Iterator[Finding]:
    """Require NUM_EPOCHS or MAX_STEPS, and MAX_STEPS for endless data."""
    settings = context.settings
    if settings.max_steps is not None:
        return
    if settings.num_epochs is None:
        hints = (
            f"; did you mean {user_name(name)} instead of {similar}?"
            for name in ("num_epochs", "max_steps")
            if (similar := context.sources.own_name_for(name))
        )
        hint = next(hints, "")
        yield context.error("num_epochs", f"the run has no end; set NUM_EPOCHS or MAX_STEPS{hint}")
    elif settings.data.type in ENDLESS_TYPES:
        yield context.error(
            "num_epochs",
            f"{context.cite('data.type')} has no epochs, so {context.cite('num_epochs')} cannot "
            "end the run; set MAX_STEPS",
        )


def tensor_shape_agrees(context: RuleContext) -> Iterator[Finding]:
    """Warn if TENSOR_SHAPE differs from the shape of pipeline messages by Colossal-AI's convention.

    In that convention grids shard samples and width; the depth of 2.5d shards neither. With
    MODE='sequence' tokens come first, and samples second.
    """
    settings = context.settings
    stated = settings.tensor_shape
    if stated is None:
        return
    outer = context.mode.outer
    samples = settings.batch_size // settings.num_micro_batches
    width = settings.model.n_embd // context.num_shards(*outer.hidden)
    ranks = context.num_shards(*outer.tokens)
    if "SEQUENCE" in context.mode.colossal_groups.values():
        shape = (settings.seq_len // ranks, samples, width)
    elif context.mode.inner.tokens:
        grids = settings.depth if context.mode.uses_depth else 1
        shape = (samples // (ranks // grids), settings.seq_len, width)
    else:
        shape = (samples, settings.seq_len, width)
    causes = ("batch_size", "num_micro_batches", "seq_len", "model.n_embd", "mode")
    if stated != shape:
        yield context.warning(
            "tensor_shape",
            f"{context.cite('tensor_shape')} differs from {shape}, the shape for "
            f"{context.cite(*causes)}; correct or remove it: it is only checked, never used",
        )


def step_fits_the_data(context: RuleContext) -> Iterator[Finding]:
    """Warn if a step needs more samples than the data can have.

    A token is at least one byte, so the size of the files is a bound. ``cuboid train`` checks again
    when the samples are known.
    """
    settings, available = context.settings, max_samples(context.settings)
    needed = settings.batch_size * context.layout.data * settings.gradient_accumulation
    if available is not None and available < needed:
        yield context.warning(
            "batch_size",
            f"{context.cite('batch_size')}: a step needs {needed:,} samples of {settings.seq_len} "
            f"tokens, but {context.cite('data.path')} has at most {available:,} to train on, by "
            "its size, so each step repeats samples; use a smaller batch or SEQ_LEN, or more data",
        )


RULES = (
    step_fits_the_data,
    batch_divides_into_micro_batches,
    rows_are_sharded_evenly,
    samples_fit_the_positions,
    run_ends,
    tensor_shape_agrees,
)
