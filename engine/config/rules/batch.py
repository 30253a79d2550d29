"""Rules for samples: the batch, its micro-batches and their shards, and the length of the run."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.max_samples import max_samples
from engine.config.rule_context import Finding, RuleContext
from engine.config.schema import user_name
from engine.config.sections.data import ENDLESS_TYPES
from engine.config.value_hints import nearest_multiples


def batch_divides_into_micro_batches(context: RuleContext) -> Iterator[Finding]:
    """Require BATCH_SIZE to be a multiple of NUM_MICRO_BATCHES: micro-batches have equal sizes."""
    batch, count = context.settings.batch_size, context.settings.num_micro_batches
    if batch % count:
        yield context.error(
            "batch_size",
            f"{context.cite('batch_size')} is not a multiple of "
            f"{context.cite('num_micro_batches')}; nearest: {nearest_multiples(batch, count)}",
        )


def micro_batches_need_no_padding(context: RuleContext) -> Iterator[Finding]:
    """Warn if micro-batches are padded, because the mode cannot shard their samples evenly."""
    settings = context.settings
    if settings.batch_size % settings.num_micro_batches:
        return
    samples = settings.batch_size // settings.num_micro_batches
    multiple = context.layout.sample_multiple(settings.seq_len)
    padded = context.layout.padded_samples(samples, settings.seq_len)
    if padded == samples:
        return
    yield context.warning(
        "batch_size",
        f"{context.cite('batch_size', 'num_micro_batches')}: micro-batches of {samples} samples "
        f"are padded to {padded} samples, a multiple of {multiple}, for "
        f"{context.cite('mode', 'tensor_parallel', 'seq_len')}: {(padded - samples) / padded:.0%} "
        f"of the work is padding; to avoid it, set {', or '.join(_unpadded(context, multiple))}",
    )


def _unpadded(context: RuleContext, multiple: int) -> Iterator[str]:
    """Yield overrides that leave no padding: the same batch in fewer micro-batches, if it divides
    into multiples of ``multiple``, then the next larger batch."""
    settings = context.settings
    batch, count = settings.batch_size, settings.num_micro_batches
    round_size = settings.pipeline if settings.schedule == "interleaved" else 1
    fewer = [n for n in range(count, 0, -1) if batch % (n * multiple) == n % round_size == 0]
    if fewer:
        yield f"NUM_MICRO_BATCHES={fewer[0]}"
    larger = -(-batch // (count * multiple)) * count * multiple
    samples = larger * context.layout.data * settings.gradient_accumulation
    yield f"BATCH_SIZE={larger}" + (
        (f" NUM_MICRO_BATCHES={count}" if fewer or count > 1 else "")
        + (f" GLOBAL_BATCH_SIZE={samples}" if settings.global_batch_size else "")
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

    There grids shard samples and width; the depth of 2.5d shards neither.
    """
    settings = context.settings
    stated = settings.tensor_shape
    if stated is None:
        return
    outer = context.mode.outer
    samples = settings.batch_size // settings.num_micro_batches
    width = settings.model.n_embd // context.num_shards(*outer.hidden)
    if context.mode.whole_samples:
        grids = settings.depth if context.mode.uses_depth else 1
        samples //= context.num_shards(*outer.tokens) // grids
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
    micro_batches_need_no_padding,
    samples_fit_the_positions,
    run_ends,
    tensor_shape_agrees,
)
