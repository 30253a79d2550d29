"""Attention of samples that several ranks hold, against full scores in one process."""

from __future__ import annotations

from functools import cache, partial
from itertools import product

import pytest
import torch
from einops import rearrange
from torch import Tensor

from models.parallel.attention import AttentionDropout, GroupAttention
from models.parallel.attention_blocks import ScoreBlock, merge
from models.parallel.context import ParallelContext
from models.parallel.dropout import dropped, mix
from models.parallel.key_exchange import SampleGroup
from models.parallel.rows import ContextExchange
from tests.models.parallel.support import Largest
from tests.support.local_shards import piece
from tests.support.mode_sizes import ModeSize
from tests.support.training import TrainingCase, open_partition
from tests.support.worlds import run_world

HEADS, D = 4, 3
P, SEED, SITE = 0.3, 2**62 + 7, 2**61 + 5
CUTS = [ModeSize("2d", 4, 1), ModeSize("2.5d", 4, 4)]
SHAPES = [(1, 9), (3, 6), (5, 3), (2, 8)]  # samples, length


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def scores_of(q: Tensor, k: Tensor, start: int) -> Tensor:
    """Return the masked scores of q, whose rows have the positions from ``start`` on."""
    rows = torch.arange(start, start + q.shape[2]).unsqueeze(1)
    future = torch.arange(k.shape[2]) > rows
    scores: Tensor = q @ k.transpose(2, 3) / D**0.5
    return scores.masked_fill(future, -torch.inf)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("border", [1, 4, 6])
def test_merged_blocks_equal_a_softmax_over_all_keys(fused: bool, border: int) -> None:
    q, (k, v) = draw(2, HEADS, 7 - border, D), draw(2, 2, HEADS, 7, D)
    q, k, v = (x.requires_grad_() for x in (q, k.clone(), v.clone()))
    wanted = scores_of(q, k, border).softmax(3) @ v
    dout = torch.ones_like(wanted).cumsum(3)
    gradients = torch.autograd.grad(wanted, (q, k, v), dout)
    mask = None if fused else partial(torch.zeros, 2, HEADS, 1, 1, dtype=torch.bool)
    blocks = [
        ScoreBlock(
            q=q.detach(), k=k.detach()[:, :, keys], v=v.detach()[:, :, keys], causal=c, dropped=mask
        )
        for keys, c in ((slice(border), False), (slice(border, None), True))
    ]
    out, lse = merge(*blocks[0].forward(), *blocks[1].forward())
    torch.testing.assert_close(out, wanted.detach(), rtol=0, atol=1e-14)
    before, after = (block.backward(dout, out, lse) for block in blocks)
    later = (torch.cat([before[n], after[n]], 2) for n in (1, 2))
    found = (before[0] + after[0], *later)
    for mine, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


def test_merge_of_half_precision_keeps_the_weights_in_float32() -> None:
    """The log-sum-exp is near 90: in bf16 it would have steps of a half."""
    lse = torch.tensor([[[90.0]]]), torch.tensor([[[90.0 + 0.2]]])
    ones = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    out, total = merge(0 * ones, lse[0], ones, lse[1])
    share = torch.sigmoid(torch.tensor(0.2))
    assert (out.dtype, total.dtype) == (torch.float32, torch.float32)
    assert out.item() == pytest.approx(share.item(), rel=1e-5)


def test_fused_blocks_never_allocate_the_scores() -> None:
    q, k = draw(1, 1, 512, 8, dtype=torch.float32), draw(1, 1, 1024, 8, dtype=torch.float32)
    block = ScoreBlock(q=q, k=k, v=k, causal=False)
    with Largest() as largest:
        out, lse = block.forward()
        block.backward(out, out, lse)
    assert largest.elements <= k.numel()


def problem(samples: int, length: int) -> tuple[Tensor, Tensor]:
    """Return qkv [T, heads x 3 x d] and the gradient of the output [T, heads x d]."""
    return draw(samples * length, HEADS * 3 * D), draw(samples * length, HEADS * D)


def whole(samples: int, length: int, p: float) -> tuple[Tensor, Tensor]:
    """Return the output and the gradient of qkv, by full scores."""
    qkv, dout = problem(samples, length)
    qkv.requires_grad_()
    q, k, v = rearrange(qkv, "(b s) (h n d) -> n b h s d", s=length, n=3, d=D).unbind(0)
    probabilities = scores_of(q, k, 0).softmax(3)
    if p:
        numbers = (torch.arange(n) for n in probabilities.shape[:3])
        states = mix(SEED, SITE, *(n.view(-1, *[1] * (2 - dim)) for dim, n in enumerate(numbers)))
        mask = dropped(p, states, [range(length)])
        probabilities = probabilities.masked_fill(mask, 0.0) / (1 - p)
    out = rearrange(probabilities @ v, "b h s d -> (b s) (h d)")
    return out.detach(), torch.autograd.grad(out, qkv, dout)[0]


Key = tuple[ModeSize, int, int, float, bool, ContextExchange]
WAYS: list[tuple[bool, ContextExchange]] = [(False, "gather"), (True, "gather"), (False, "ring")]


def share_of(part: ParallelContext, samples: int, length: int, p: float) -> dict[str, float]:
    """Return the largest errors of this rank's output and gradients."""
    inner = part.mode.inner

    def local(x: Tensor) -> Tensor:
        order = part.row_order(len(x), length)
        padded = torch.cat([x, x.new_zeros(order.rows - len(x), x.shape[1])])
        rows = [padded[tokens.start : tokens.stop] for tokens in order.tokens()]
        return piece(torch.cat(rows), inner, part)

    qkv, dout = problem(samples, length)
    out, dqkv = whole(samples, length, p)
    x = local(qkv).requires_grad_()
    heads = x.shape[1] // (3 * D)
    first = sum(part.index[axis] for axis in inner.hidden) * heads
    dropout = AttentionDropout(p=p, seed=SEED, site=SITE, first_head=first) if p else None
    group = SampleGroup(part.row_order(samples * length, length), part)
    y = GroupAttention.apply(x, D, group, dropout)
    y.backward(local(dout))
    assert x.grad is not None
    valid = local(torch.ones(samples * length, dqkv.shape[1]))
    return {
        "output": float((y.detach() - local(out)).mul(valid[:, : y.shape[1]]).abs().max()),
        "gradient": float((x.grad - local(dqkv)).abs().max()),
    }


def shares(rank: int, size: int) -> dict[Key, dict[str, float]]:
    found = {}
    for cut, (samples, length), p, (keep, context) in product(CUTS, SHAPES, (0.0, P), WAYS):
        case = TrainingCase(
            **cut._asdict(), dtype=torch.float64, keep_gathers=keep, context=context
        )
        part = open_partition(case, rank)
        found[cut, samples, length, p, keep, context] = share_of(part, samples, length, p)
    return found


@cache
def every_share() -> list[dict[Key, dict[str, float]]]:
    return run_world(4, shares)


@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_sharded_samples_have_the_attention_of_one_process(cut: ModeSize, p: float) -> None:
    """With dropout too: its mask is a function of sample, head and positions."""
    for found in every_share():
        for (other, *_, dropout, _, _), errors in found.items():
            if (other, dropout) == (cut, p):
                assert max(errors.values()) < 1e-13, errors
