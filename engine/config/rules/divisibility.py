"""The model's sizes against the cuts of the mode."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, lcm

from engine.config.rule_context import Finding, RuleContext
from engine.config.value_hints import nearest_multiples


def heads_are_cut_whole(facts: RuleContext) -> Iterator[Finding]:
    """Attention stays local, so that a rank holds whole heads."""
    inner = facts.num_shards(*facts.mode.inner.hidden)
    yield from _divides(facts, "model.n_head", facts.settings.model.n_head, inner)


def attention_is_cut_evenly(facts: RuleContext) -> Iterator[Finding]:
    """The projection's input, n_head x head_dim, is cut like a weight too."""
    model = facts.settings.model
    width, pieces = model.n_head * model.head_dim, facts.num_shards(*facts.mode.down.weight_in)
    if width % pieces and not model.n_head % facts.num_shards(*facts.mode.inner.hidden):
        step = pieces // gcd(pieces, model.n_head)
        yield facts.error(
            "model.n_head",
            f"{facts.cite('model.n_head')} x {facts.cite('model.head_dim')} = {width} is not a "
            f"multiple of {pieces}, which {facts.cite('mode', 'tensor_parallel')} need; "
            f"nearest head_dim: {nearest_multiples(model.head_dim, step)}",
        )


def width_is_cut_evenly(facts: RuleContext) -> Iterator[Finding]:
    """The width: cut in activations, in what goes into *up* and comes out of *down* weights."""
    mode = facts.mode
    cuts = (mode.outer.hidden, mode.up.weight_in, mode.down.weight_out)
    pieces = lcm(*(facts.num_shards(*axes) for axes in cuts))
    yield from _divides(facts, "model.n_embd", facts.settings.model.n_embd, pieces)


def mlp_is_cut_alike(facts: RuleContext) -> Iterator[Finding]:
    """The MLP's width: cut in activations, in what leaves *up* and goes into *down* weights. It is
    padded, and the padding stays zero, where a product's x and w come to the same width."""
    mode, width = facts.mode, facts.settings.model.n_inner
    cuts = (mode.inner.hidden, mode.up.weight_out, mode.down.weight_in)
    pieces = lcm(*(facts.num_shards(*axes) for axes in cuts))
    x, w = mode.down.gather_x, mode.down.gather_w
    gathered_x = -(-width // facts.num_shards(*mode.inner.hidden))
    gathered_x *= facts.num_shards(x.axis) if x and x.on == "H" else 1
    gathered_w = -(-width // facts.num_shards(*mode.down.weight_in))
    gathered_w *= facts.num_shards(w) if w else 1
    if gathered_x == gathered_w:
        yield from _padded(facts, "model.n_inner", width, pieces)
    elif facts.is_stated("model.n_inner") or not facts.settings.model.n_embd % pieces:
        yield from _divides(facts, "model.n_inner", width, pieces)


def vocabulary_is_padded(facts: RuleContext) -> Iterator[Finding]:
    """The vocabulary is padded to what the cut needs."""
    pieces = facts.num_shards(*facts.mode.up.weight_out)
    yield from _padded(facts, "model.vocab_size", facts.settings.model.vocab_size, pieces)


def _padded(facts: RuleContext, name: str, value: int, pieces: int) -> Iterator[Finding]:
    if value % pieces:
        yield facts.note(
            name,
            f"{facts.cite(name)} is padded to {-(-value // pieces) * pieces}, a "
            f"multiple of {pieces}, for {facts.cite('mode', 'tensor_parallel')}",
        )


def _divides(facts: RuleContext, name: str, value: int, pieces: int) -> Iterator[Finding]:
    if value % pieces:
        yield facts.error(
            name,
            f"{facts.cite(name)} is not a multiple of {pieces}, which "
            f"{facts.cite('mode', 'tensor_parallel')} need; "
            f"nearest: {nearest_multiples(value, pieces)}",
        )


RULES = (
    heads_are_cut_whole,
    attention_is_cut_evenly,
    width_is_cut_evenly,
    mlp_is_cut_alike,
    vocabulary_is_padded,
)
