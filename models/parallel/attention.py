"""Attention of samples that several ranks hold together (context parallelism)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from models.parallel.attention_blocks import Gradients, ScoreBlock, merge
from models.parallel.dropout import dropped, mix
from models.parallel.key_exchange import Arrivals, Keys, Returned, SampleGroup
from models.parallel.rows import Segment, before


@dataclass(frozen=True, kw_only=True)
class AttentionDropout:
    """Dropout of attention's probabilities: the mask is a function of the seed, the sample, the
    head and the positions, whatever ranks have them."""

    p: float
    seed: int
    """Of the micro-batch."""
    site: int
    first_head: int
    """Number of this rank's first head."""

    def mask(self, sample: int, start: int, keys: Sequence[range], q: Tensor) -> Tensor:
        """Draw the mask of a block: of samples from number ``sample`` on, rows q [B, heads, Q, d]
        from position ``start`` on, and keys at the positions ``keys``."""
        count, heads, rows, _ = q.shape
        arange = partial(torch.arange, device=q.device)
        states = mix(
            self.seed,
            self.site,
            arange(sample, sample + count).view(-1, 1, 1),
            arange(self.first_head, self.first_head + heads).view(-1, 1),
            arange(start, start + rows),
        )
        return dropped(self.p, states, keys)


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The rows of a rank: q [rows, heads, d] in segments, one for each sample or several whole
    ones."""

    q: Tensor
    group: SampleGroup
    dropout: AttentionDropout | None

    def of(self, x: Tensor, segment: Segment) -> Tensor:
        """Return the rows of x [rows, heads, d] of a segment, by sample [B, heads, rows, d]."""
        rows = x[segment.row : segment.row + segment.rows]
        return rearrange(rows, "(b s) h d -> b h s d", b=segment.count)

    def own_block(self, kv: Tensor, segment: Segment) -> ScoreBlock:
        """Return a segment's causal block with its own keys, of kv [rows, heads, 2, d]."""
        positions = [range(segment.start, segment.stop)]
        k, v = (self.of(kv[:, :, n], segment) for n in (0, 1))
        return self._block(segment, k, v, positions, causal=True)

    def blocks(self, keys: Keys) -> Iterator[tuple[Segment, slice, ScoreBlock]]:
        """Yield the blocks of segments with tokens before them in their sample that are among
        ``keys``, and their rows of keys."""
        for segment in self.group.segments:
            places, tokens = before(segment, keys.tokens)
            if tokens:
                rows, first = slice(places.start, places.stop), segment.first
                k, v = (rearrange(keys.kv[rows, :, n], "s h d -> 1 h s d") for n in (0, 1))
                positions = [range(some.start - first, some.stop - first) for some in tokens]
                yield segment, rows, self._block(segment, k, v, positions, causal=False)

    def _block(
        self, segment: Segment, k: Tensor, v: Tensor, positions: list[range], *, causal: bool
    ) -> ScoreBlock:
        q, dropout = self.of(self.q, segment), self.dropout
        if dropout is None:
            return ScoreBlock(q=q, k=k, v=v, causal=causal)
        sample = self.group.first_sample + segment.first // self.group.order.length
        mask = partial(dropout.mask, sample, segment.start, positions, q)
        return ScoreBlock(q=q, k=k, v=v, causal=causal, dropout=dropout.p, dropped=mask)


class GroupAttention(torch.autograd.Function):
    """Causal attention of samples whose rows several ranks hold: qkv [rows, heads x 3 x d],
    head-major -> [rows, heads x d].

    A row attends causally to the tokens of its segment, and to all those before the segment in its
    sample, of which other ranks send the keys and values and sum the gradients. The scores are
    never allocated.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, head_dim: int, group: SampleGroup, dropout: AttentionDropout | None
    ) -> Tensor:
        q, kv = _parts(qkv, head_dim)
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=wide)
        queries = Queries(q=q, group=group, dropout=dropout)
        arrivals, held = Arrivals(group, kv), []
        unfinished = {}
        for segment in group.segments:  # the keys of other ranks are in transit
            result = queries.own_block(kv, segment).forward()
            if segment.start:
                unfinished[segment] = result
            else:
                _put(segment, result, out, lse)
            del result
        _merge_blocks(queries, group.own_keys(kv), unfinished)
        for _ in group.rounds:
            keys = arrivals.take()
            _merge_blocks(queries, keys, unfinished)
            held += [keys.kv] * group.keeps_keys
            del keys
        for segment, result in unfinished.items():
            _put(segment, result, out, lse)
        ctx.save_for_backward(qkv, out, lse, *held)
        ctx.head_dim, ctx.group, ctx.dropout = head_dim, group, dropout
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, lse, *held = ctx.saved_tensors
        group: SampleGroup = ctx.group
        q, kv = _parts(qkv, ctx.head_dim)
        queries = Queries(q=q, group=group, dropout=ctx.dropout)
        saved = gradients[0].view_as(out), out, lse
        sums = torch.zeros_like(qkv, dtype=lse.dtype)
        dq, dkv = _parts(sums, ctx.head_dim)
        arrivals = Arrivals(group, kv, held)
        del held
        for segment in group.segments:
            terms = _terms(queries, segment, queries.own_block(kv, segment), saved)
            rows = slice(segment.row, segment.row + segment.rows)
            _add(terms, dq[rows], dkv[rows])
            del terms  # before those of the next block
        _add_terms(queries, group.own_keys(kv), saved, dq, dkv[group.own_rows])
        returned: Returned | None = None
        for number in range(len(group.rounds)):
            keys = arrivals.take()
            dkeys = torch.zeros_like(keys.kv)
            _add_terms(queries, keys, saved, dq, dkeys)
            del keys
            before_it, returned = returned, group.give_back(dkeys, number)
            del dkeys
            if before_it is not None:
                before_it.add_to(dkv)
            del before_it
        if returned is not None:
            returned.add_to(dkv)
        return sums.to(qkv.dtype), None, None, None


def _parts(qkv: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return views of q [rows, heads, d] and kv [rows, heads, 2, d]."""
    parts = rearrange(qkv, "t (h n d) -> t h n d", n=3, d=head_dim)
    return parts[:, :, 0], parts[:, :, 1:]


def _merge_blocks(
    queries: Queries, keys: Keys, unfinished: dict[Segment, tuple[Tensor, Tensor]]
) -> None:
    """Attend to ``keys`` and merge the results into the ``unfinished`` results of the segments."""
    for segment, _, block in queries.blocks(keys):
        unfinished[segment] = merge(*unfinished[segment], *block.forward())


def _put(segment: Segment, result: tuple[Tensor, Tensor], out: Tensor, lse: Tensor) -> None:
    """Write a segment's attention result into its rows of ``out`` and ``lse``."""
    rows = slice(segment.row, segment.row + segment.rows)
    out[rows] = rearrange(result[0], "b h s d -> (b s) h d")
    lse[rows] = rearrange(result[1], "b h s -> (b s) h")


def _terms(
    queries: Queries, segment: Segment, block: ScoreBlock, saved: tuple[Tensor, Tensor, Tensor]
) -> Gradients:
    """Return a block's terms of dq, dk and dv [rows, heads, d]. ``saved``: dout, out and lse."""
    dout, out = (queries.of(x, segment) for x in saved[:2])
    rows = saved[2][segment.row : segment.row + segment.rows]
    lse = rearrange(rows, "(b s) h -> b h s", b=segment.count)
    dq, dk, dv = (rearrange(x, "b h s d -> (b s) h d") for x in block.backward(dout, out, lse))
    return dq, dk, dv


def _add(terms: Gradients, dq: Tensor, dkv: Tensor) -> None:
    dq += terms[0]
    dkv[:, :, 0] += terms[1]
    dkv[:, :, 1] += terms[2]


def _add_terms(
    queries: Queries, keys: Keys, saved: tuple[Tensor, Tensor, Tensor], dq: Tensor, dkeys: Tensor
) -> None:
    """Add the terms of all blocks with ``keys`` to dq and to the gradients of the keys."""
    for segment, rows, block in queries.blocks(keys):
        terms = _terms(queries, segment, block, saved)
        _add(terms, dq[segment.row : segment.row + segment.rows], dkeys[rows])
        del terms
