"""Rules for the model's sizes: each sharded dimension must divide by its number of shards."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, lcm

from engine.config.rule_context import Finding, RuleContext
from engine.config.value_hints import nearest_multiples
from models.parallel.shard import round_up


def heads_are_not_split(context: RuleContext) -> Iterator[Finding]:
    """Require model.n_head to divide by the ranks that share the heads: attention is local."""
    shards = context.num_shards(*context.mode.inner.hidden)
    yield from _divides(context, "model.n_head", context.settings.model.n_head, shards)


def attention_is_sharded_evenly(context: RuleContext) -> Iterator[Finding]:
    """Require n_head x head_dim, the input width of the attention projection, to divide by its
    number of shards."""
    model = context.settings.model
    width, shards = model.n_head * model.head_dim, context.num_shards(*context.mode.down.weight_in)
    if width % shards and not model.n_head % context.num_shards(*context.mode.inner.hidden):
        step = shards // gcd(shards, model.n_head)
        yield context.error(
            "model.n_head",
            f"{context.cite('model.n_head')} x {context.cite('model.head_dim')} = {width} is not a "
            f"multiple of {shards}, which {context.cite('mode', 'tensor_parallel')} need; "
            f"nearest head_dim: {nearest_multiples(model.head_dim, step)}",
        )


def width_is_sharded_evenly(context: RuleContext) -> Iterator[Finding]:
    """Require model.n_embd to divide by its number of shards.

    It is sharded in activations, in the input of column-parallel (*up*) and in the output of
    row-parallel (*down*) weights.
    """
    mode = context.mode
    specs = (mode.outer.hidden, mode.up.weight_in, mode.down.weight_out)
    shards = lcm(*(context.num_shards(*axes) for axes in specs))
    yield from _divides(context, "model.n_embd", context.settings.model.n_embd, shards)


def mlp_is_sharded_evenly(context: RuleContext) -> Iterator[Finding]:
    """Require model.n_inner to divide by its number of shards, or note that it is padded.

    It is sharded in activations, in the output of column-parallel (*up*) and in the input of
    row-parallel (*down*) weights. Padding, which stays zero, is possible if the gathered input and
    the gathered weight of a matmul have equal widths.
    """
    mode, width = context.mode, context.settings.model.n_inner
    specs = (mode.inner.hidden, mode.up.weight_out, mode.down.weight_in)
    shards = lcm(*(context.num_shards(*axes) for axes in specs))
    x, w = mode.down.gather_x, mode.down.gather_w
    gathered_x = -(-width // context.num_shards(*mode.inner.hidden))
    gathered_x *= context.num_shards(x.axis) if x and x.on == "H" else 1
    gathered_w = -(-width // context.num_shards(*mode.down.weight_in))
    gathered_w *= context.num_shards(w) if w else 1
    if gathered_x == gathered_w:
        yield from _padded(context, "model.n_inner", width, shards)
    elif context.is_stated("model.n_inner") or not context.settings.model.n_embd % shards:
        yield from _divides(context, "model.n_inner", width, shards)


def vocabulary_is_padded(context: RuleContext) -> Iterator[Finding]:
    """Note that the vocabulary is padded to a multiple of its number of shards."""
    shards = context.num_shards(*context.mode.up.weight_out)
    yield from _padded(context, "model.vocab_size", context.settings.model.vocab_size, shards)


def _padded(context: RuleContext, name: str, value: int, shards: int) -> Iterator[Finding]:
    if value % shards:
        yield context.note(
            name,
            f"{context.cite(name)} is padded to {round_up(value, shards)}, a "
            f"multiple of {shards}, for {context.cite('mode', 'tensor_parallel')}",
        )


def _divides(context: RuleContext, name: str, value: int, shards: int) -> Iterator[Finding]:
    if value % shards:
        yield context.error(
            name,
            f"{context.cite(name)} is not a multiple of {shards}, which "
            f"{context.cite('mode', 'tensor_parallel')} need; "
            f"nearest: {nearest_multiples(value, shards)}",
        )


RULES = (
    heads_are_not_split,
    attention_is_sharded_evenly,
    width_is_sharded_evenly,
    mlp_is_sharded_evenly,
    vocabulary_is_padded,
)
