"""Attention of samples that several ranks hold together (context parallelism)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from models.parallel.attention_blocks import ScoreBlock, merge
from models.parallel.collectives import gather, scatter
from models.parallel.context import ParallelContext
from models.parallel.dropout import dropped, mix
from models.parallel.rows import RowOrder, Segment


class SampleGroup:
    """This rank's place among the ranks that hold samples together.

    Keys and values of a group are one tensor kv [tokens of the group, heads, 2, d].
    """

    def __init__(self, order: RowOrder, parallel: ParallelContext) -> None:
        self.order, self.parallel = order, parallel
        shard = parallel.rows(order.rows, order.axes).start // order.local
        group, member = divmod(shard, order.group)
        self.first_sample = group * order.group * order.local // order.length
        self.segments = order.segments(member)

    def gather(self, kv: Tensor) -> Tensor:
        """Gather kv [rows, heads, 2, d] over the group, in the order of tokens."""
        order, shape = self.order, kv.shape
        x = kv.flatten(1)
        for name in reversed(order.gathered_axes):
            x = gather(x, self.parallel.axis(name), "T")
        if order.early < order.local:
            shards = x.view(order.group, order.local, -1)
            early, late = shards[:, : order.early], shards[:, order.early :]
            x = torch.cat([*early, *late.unbind()[::-1]])
        return x.view(-1, *shape[1:])

    def scatter(self, dkv: Tensor) -> Tensor:
        """Sum the gradients of gathered kv over the group; return this rank's rows."""
        order, shape = self.order, dkv.shape
        x = dkv.flatten(1)
        if order.early < order.local:
            border = order.group * order.early
            early = x[:border].chunk(order.group)
            late = x[border:].chunk(order.group)[::-1]
            x = torch.cat([piece for both in zip(early, late, strict=True) for piece in both])
        for name in order.gathered_axes:
            x = scatter(x, self.parallel.axis(name), "T")
        return x.view(-1, *shape[1:])


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

    def mask(self, sample: int, start: int, keys: Sequence[range], block: ScoreBlock) -> Tensor:
        """Draw the mask of a block: of samples from number ``sample`` on, rows from position
        ``start`` on, and keys at the positions ``keys``."""
        count, heads, rows, _ = block.q.shape
        arange = partial(torch.arange, device=block.q.device)
        states = mix(
            self.seed,
            self.site,
            arange(sample, sample + count).view(-1, 1, 1),
            arange(self.first_head, self.first_head + heads).view(-1, 1),
            arange(start, start + rows),
        )
        return dropped(self.p, states, keys)


class GroupAttention(torch.autograd.Function):
    """Causal attention of samples whose rows several ranks hold: qkv [rows, heads x 3 x d],
    head-major -> [rows, heads x d].

    Keys and values are gathered over the group, and their gradients are summed over it. A row
    attends to the tokens of its sample up to itself: to all those before the first row of its
    segment, and causally to those of the segment. The scores are never allocated.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, head_dim: int, group: SampleGroup, dropout: AttentionDropout | None
    ) -> Tensor:
        q, kv = _parts(qkv, head_dim)
        kv = group.gather(kv)
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=wide)
        for segment in group.segments:
            _attend(q, kv, segment, group, dropout, out, lse)
        gathered = (kv,) if group.parallel.keep_gathers else ()
        ctx.save_for_backward(qkv, out, lse, *gathered)
        ctx.head_dim, ctx.group, ctx.dropout = head_dim, group, dropout
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, lse, *gathered = ctx.saved_tensors
        group: SampleGroup = ctx.group
        q, kv = _parts(qkv, ctx.head_dim)
        kv = gathered[0] if gathered else group.gather(kv)
        dout = gradients[0].view_as(out)
        dqkv, dkv = torch.zeros_like(qkv), torch.zeros_like(kv)
        dq, own_dkv = _parts(dqkv, ctx.head_dim)
        _add_gradients(q, kv, group, ctx.dropout, (dout, out, lse), (dq, dkv))
        del kv, gathered  # the sum over ranks takes as much memory
        own_dkv.copy_(group.scatter(dkv))
        return dqkv, None, None, None


def _parts(qkv: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return views of q [rows, heads, d] and kv [rows, heads, 2, d]."""
    parts = rearrange(qkv, "t (h n d) -> t h n d", n=3, d=head_dim)
    return parts[:, :, 0], parts[:, :, 1:]


def _by_sample(x: Tensor, count: int) -> Tensor:
    return rearrange(x, "(b s) h d -> b h s d", b=count)


def _attend(
    q: Tensor,
    kv: Tensor,
    segment: Segment,
    group: SampleGroup,
    dropout: AttentionDropout | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Compute the rows of ``out`` and ``lse`` of a segment."""
    rows = slice(segment.row, segment.row + segment.rows)
    results = [block.forward() for _, block in _blocks(q, kv, segment, group, dropout)]
    result, total = results[0] if len(results) == 1 else merge(*results[0], *results[1])
    out[rows] = rearrange(result, "b h s d -> (b s) h d")
    lse[rows] = rearrange(total, "b h s -> (b s) h")


def _add_gradients(
    q: Tensor,
    kv: Tensor,
    group: SampleGroup,
    dropout: AttentionDropout | None,
    saved: tuple[Tensor, Tensor, Tensor],
    gradients: tuple[Tensor, Tensor],
) -> None:
    """Add the terms of all blocks to dq and dkv, ``gradients``. ``saved``: dout, out and lse."""
    for segment in group.segments:
        rows = slice(segment.row, segment.row + segment.rows)
        dout, out = (_by_sample(x[rows], segment.count) for x in saved[:2])
        lse = rearrange(saved[2][rows], "(b s) h -> b h s", b=segment.count)
        for keys, block in _blocks(q, kv, segment, group, dropout):
            terms = block.backward(dout, out, lse)
            dq, dk, dv = (rearrange(x, "b h s d -> (b s) h d") for x in terms)
            gradients[0][rows] += dq
            gradients[1][keys, :, 0] += dk
            gradients[1][keys, :, 1] += dv
            del terms, dq, dk, dv  # before those of the next block


def _blocks(
    q: Tensor, kv: Tensor, segment: Segment, group: SampleGroup, dropout: AttentionDropout | None
) -> Iterator[tuple[slice, ScoreBlock]]:
    """Yield the blocks of keys that the rows of a segment attend to, each with the tokens of the
    keys."""
    queries = _by_sample(q[segment.row : segment.row + segment.rows], segment.count)
    sample = group.first_sample + segment.first // group.order.length
    for positions in (range(segment.start), range(segment.start, segment.stop)):
        if not positions:
            continue
        first = segment.first + positions.start
        tokens = slice(first, first + segment.count * len(positions))
        k, v = (_by_sample(kv[tokens, :, n], segment.count) for n in (0, 1))
        block = ScoreBlock(q=queries, k=k, v=v, causal=positions.start == segment.start)
        if dropout:
            mask = partial(dropout.mask, sample, segment.start, [positions], block)
            block = replace(block, dropout=dropout.p, dropped=mask)
        yield tokens, block
