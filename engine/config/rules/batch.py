"""Samples: how a batch falls into micro-batches, and those into pieces."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.max_samples import max_samples
from engine.config.rule_context import Finding, RuleContext
from engine.config.schema import user_name
from engine.config.value_hints import nearest_multiples


def batch_falls_into_micro_batches(facts: RuleContext) -> Iterator[Finding]:
    """BATCH_SIZE is worked through in parts of the same size."""
    batch, parts = facts.settings.batch_size, facts.settings.num_micro_batches
    if batch % parts:
        yield facts.error(
            "batch_size",
            f"{facts.cite('batch_size')} is not a multiple of "
            f"{facts.cite('num_micro_batches')}; nearest: {nearest_multiples(batch, parts)}",
        )


def micro_batch_falls_into_pieces(facts: RuleContext) -> Iterator[Finding]:
    """A micro-batch whose samples the mode cannot split evenly is padded."""
    settings = facts.settings
    if settings.batch_size % settings.num_micro_batches:
        return
    samples = settings.batch_size // settings.num_micro_batches
    multiple = facts.layout.sample_multiple(settings.seq_len)
    padded = -(-samples // multiple) * multiple
    if padded == samples:
        return
    yield facts.warning(
        "batch_size",
        f"{facts.cite('batch_size', 'num_micro_batches')}: micro-batches of {samples} x "
        f"{facts.cite('seq_len')} are padded to {padded} samples, which "
        f"{facts.cite('mode', 'tensor_parallel')} split evenly: {(padded - samples) / padded:.0%} "
        f"of the work is padding; none with {' or with '.join(_unpadded(facts, multiple))}",
    )


def _unpadded(facts: RuleContext, multiple: int) -> Iterator[str]:
    """List overrides that leave no padding: fewer micro-batches of the same batch, where it can be
    split into multiples of ``multiple``, then the next larger batch."""
    settings = facts.settings
    batch, parts = settings.batch_size, settings.num_micro_batches
    round_of = settings.pipeline if settings.schedule == "interleaved" else 1
    fewer = [n for n in range(parts, 0, -1) if batch % (n * multiple) == n % round_of == 0]
    if fewer:
        yield f"NUM_MICRO_BATCHES={fewer[0]}"
    yield f"BATCH_SIZE={-(-batch // (parts * multiple)) * parts * multiple}" + (
        f" NUM_MICRO_BATCHES={parts}" if fewer or parts > 1 else ""
    )


def samples_fit_the_positions(facts: RuleContext) -> Iterator[Finding]:
    """Every token of a sample has a position."""
    if facts.settings.seq_len > facts.settings.model.block_size:
        yield facts.error(
            "seq_len",
            f"{facts.cite('seq_len')} is more than the positions there are, "
            f"{facts.cite('model.block_size')}",
        )


def run_ends(facts: RuleContext) -> Iterator[Finding]:
    """Something says how long to train; epochs of data without end do not."""
    settings = facts.settings
    if settings.max_steps is not None:
        return
    if settings.num_epochs is None:
        owns = ((name, facts.sources.own_name_for(name)) for name in ("num_epochs", "max_steps"))
        meant = next(
            (f"; did you mean {user_name(name)} by {own}?" for name, own in owns if own), ""
        )
        yield facts.error("num_epochs", f"the run has no end: set NUM_EPOCHS or MAX_STEPS{meant}")
    elif settings.data.type == "synthetic":
        yield facts.error(
            "num_epochs",
            f"{facts.cite('data.type')} never ends, so {facts.cite('num_epochs')} does not end "
            "the run: set MAX_STEPS",
        )


def tensor_shape_agrees(facts: RuleContext) -> Iterator[Finding]:
    """TENSOR_SHAPE, in Colossal-AI's reckoning: grids divide samples and width, depth neither."""
    settings = facts.settings
    stated = settings.tensor_shape
    if stated is None:
        return
    outer = facts.mode.outer
    samples = settings.batch_size // settings.num_micro_batches
    width = settings.model.n_embd // facts.num_shards(*outer.hidden)
    if facts.mode.whole_samples:
        grids = settings.depth if facts.mode.uses_depth else 1
        samples //= facts.num_shards(*outer.tokens) // grids
    shape = (samples, settings.seq_len, width)
    if stated != shape:
        yield facts.warning(
            "tensor_shape",
            f"{facts.cite('tensor_shape')} differs from {shape}, which follows from "
            f"{facts.cite('batch_size', 'num_micro_batches', 'seq_len', 'model.n_embd', 'mode')}; "
            "shapes are worked out, so nothing depends on it",
        )


def step_is_within_the_data(facts: RuleContext) -> Iterator[Finding]:
    """A step takes no sample twice. A token stands for a byte of the data or more, so the size of
    files tells where that is certain; ``cuboid train`` knows in all cases."""
    settings, most = facts.settings, max_samples(facts.settings)
    taken = settings.batch_size * facts.layout.data * settings.gradient_accumulation
    if most is not None and most < taken:
        yield facts.warning(
            "batch_size",
            f"{facts.cite('batch_size')}: a step takes {taken:,} samples of {settings.seq_len} "
            f"tokens, and {facts.cite('data.path')} has at most {most:,} to train on, by its size: "
            "a step reads the same samples several times",
        )


RULES = (
    step_is_within_the_data,
    batch_falls_into_micro_batches,
    micro_batch_falls_into_pieces,
    samples_fit_the_positions,
    run_ends,
    tensor_shape_agrees,
)
