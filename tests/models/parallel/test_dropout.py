"""Keyed dropout: a mask is a function of (seed, step, sample, layer, site, position, feature), not
of the layout or of the state of a generator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from engine.layout import Layout
from models.config import GPTConfig
from models.gpt import GPT, Attention, Block
from models.parallel.collectives import Axis, Traffic
from models.parallel.context import ParallelContext
from models.parallel.dropout import Dropout, dropped, mix, seed_from_sample
from models.parallel.micro_batch import MicroBatch
from models.parallel.mode import ActivationSharding
from models.parallel.registry import modes
from tests.support.mode_sizes import ModeSize, full_mode_sizes
from tests.support.training import (
    TrainingCase,
    TrainingResult,
    build,
    make_stepper,
    open_partition,
    samples,
    train,
    train_all,
)
from tests.support.worlds import run_world

P = 0.3
SERIAL = ActivationSharding(tokens=(), hidden=())
SIZES = GPTConfig(
    n_layer=3,
    n_head=8,
    n_embd=64,
    head_dim=8,
    n_inner=64,
    vocab_size=16,
    block_size=48,
    embd_pdrop=P,
    resid_pdrop=P,
    attn_pdrop=P,
)


def partition_of(layout: Layout, rank: int) -> ParallelContext:
    """Build a rank's context without process groups."""
    index = layout.coordinates(rank)
    axes = {
        name: Axis(name=name, size=size, index=index[name], group=None, traffic=Traffic())
        for name, size in layout.axes.items()
    }
    axes["tensor"] = Axis(name="tensor", size=1, index=0, group=None, traffic=Traffic())
    return ParallelContext(mode=layout.mode, axes=axes)


def residual_masks(part: ParallelContext, layer: int, seed: int) -> Iterable[Tensor]:
    """Yield the masks of both residual sites of a block."""
    block, ones = Block(SIZES, part, layer), torch.ones(64, 64)
    yield block.drop_1(ones, MicroBatch(length=16, seed=seed))
    yield block.drop_2(ones, MicroBatch(length=16, seed=seed))


def attention_weights(part: ParallelContext, layer: int, seed: int, p: float = P) -> Tensor:
    """Return the attention weights of zero scores after a GPU's dropout: [B, heads, S, S], 1 / (s +
    1) or 0 in row s, before scaling by 1 / (1 - p)."""
    sizes = replace(SIZES, attn_pdrop=p)
    zero = torch.zeros(2, 2, 48, 48)
    v = torch.eye(48).expand_as(zero)
    return Attention(sizes, part, layer).attend(zero, zero, v, MicroBatch(length=48, seed=seed))


def attention_masks(part: ParallelContext, layer: int, seed: int) -> Iterable[Tensor]:
    rows, columns = torch.tril_indices(48, 48)
    yield attention_weights(part, layer, seed)[..., rows, columns]


def assert_independent(masks: list[Tensor]) -> None:
    """Check that the correlation of any two masks is below 6 sigma."""
    kept = torch.stack([(mask != 0).flatten().float() for mask in masks])
    correlation = torch.corrcoef(kept) - torch.eye(len(kept))
    assert correlation.abs().max() < 6 / kept.shape[1] ** 0.5


@pytest.mark.parametrize(("draw", "data"), [(residual_masks, 1), (attention_masks, 2)])
@pytest.mark.parametrize("cut", full_mode_sizes(), ids=str)
def test_masks_are_independent_across_ranks_layers_sites_and_micro_batches(
    cut: ModeSize, draw: Any, data: int
) -> None:
    """The ranks are those of the tensor axes; a GPU's attention has the data axis as a key, too."""
    layout = Layout(mode=modes()[cut.mode], tensor=cut.tensor, depth=cut.depth, data=data)
    parts = [partition_of(layout, rank) for rank in range(layout.gpus)]
    places = product(parts, (0, 2), (5, 6))
    assert_independent([mask for place in places for mask in draw(*place)])


@pytest.mark.parametrize("samples", [8, 3, 1])
@pytest.mark.parametrize("cut", full_mode_sizes(), ids=str)
def test_masks_of_all_ranks_are_pieces_of_the_mask_of_one_process(
    cut: ModeSize, samples: int
) -> None:
    """8 samples are whole on each rank; of 3 and 1 several ranks hold rows."""
    length, width = 7, 24
    batch = MicroBatch(length=length, seed=2**62 + 1)
    whole = Dropout(open_partition(TrainingCase(), 0), P, SERIAL, "here")
    layout = Layout(mode=modes()[cut.mode], tensor=cut.tensor, depth=cut.depth)
    for rank in range(layout.gpus):
        part = partition_of(layout, rank)
        outer, order = part.mode.outer, part.row_order(samples * length, length)
        expected = whole(torch.ones(order.rows, width), batch)
        expected = torch.cat([expected[tokens.start : tokens.stop] for tokens in order.tokens()])
        shard = part.shard((order.rows, width), (outer.tokens, outer.hidden))
        mask = Dropout(part, P, outer, "here")(torch.ones(shard.local), batch)
        assert torch.equal(mask, expected[shard.slices])


def test_masks_of_a_sample_do_not_depend_on_its_micro_batch() -> None:
    drop = Dropout(open_partition(TrainingCase(), 0), P, SERIAL, "here")
    seed = 2**63 - 5
    whole = drop(torch.ones(6 * 5, 8), MicroBatch(length=5, seed=seed))
    for first in range(6):
        seed_of_sample = seed_from_sample(seed, first)
        one = drop(torch.ones(5, 8), MicroBatch(length=5, seed=seed_of_sample))
        assert torch.equal(one, whole[5 * first : 5 * first + 5])


def test_mask_is_a_function_of_every_number_and_of_the_column_alone() -> None:
    n = torch.arange(64)
    states = mix(11, 12, n.view(-1, 1), n)
    mask = dropped(P, states, [range(64)]).double()
    assert mask.mean().item() == pytest.approx(P, abs=0.005)
    others = [mask.roll(1, dim) for dim in range(3)]
    for seed, site in ((12, 12), (11, 13)):
        others.append(dropped(P, mix(seed, site, n.view(-1, 1), n), [range(64)]).double())
    for other in others:
        assert (mask * other).mean().item() == pytest.approx(P**2, abs=0.005)
    pieces = dropped(P, states, [range(3, 10), range(30, 31)]).double()
    assert torch.equal(pieces, torch.cat([mask[..., 3:10], mask[..., 30:31]], -1))


def test_masks_of_all_sites_of_a_model_are_independent() -> None:
    part = open_partition(TrainingCase(), 0)
    model, ones = GPT(SIZES, part), torch.ones(64, 64)
    sites = [module for module in model.modules() if isinstance(module, Dropout)]
    assert len(sites) == 7
    batch = MicroBatch(length=16, seed=3)
    assert_independent([site(ones, batch) for site in sites])


@pytest.mark.parametrize("draw", [residual_masks, attention_masks])
def test_masks_are_repeatable_in_any_order(draw: Any) -> None:
    part = open_partition(TrainingCase(), 0)
    first = [list(draw(part, layer, seed)) for layer, seed in product((0, 1), (5, 6))]
    torch.manual_seed(1234)
    again = [list(draw(part, layer, seed)) for layer, seed in product((1, 0), (6, 5))]
    for masks, same in zip(first, reversed(again), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(masks, same, strict=True))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_fraction_p_is_dropped_and_the_rest_scaled(p: float) -> None:
    part = open_partition(TrainingCase(), 0)
    batch = MicroBatch(length=100, seed=7)
    residual = Block(replace(SIZES, resid_pdrop=p), part, 0).drop_1(torch.ones(400, 500), batch)
    rows, columns = torch.tril_indices(48, 48)
    weights = torch.cat([attention_weights(part, 0, seed, p) for seed in range(40)])
    attention = (weights * torch.arange(1.0, 49.0).unsqueeze(1))[..., rows, columns]
    for kept in (residual, attention):
        rest = kept[kept != 0]
        torch.testing.assert_close(rest, torch.full_like(rest, 1 / (1 - p)))
        deviation = (p * (1 - p) / kept.numel()) ** 0.5
        assert abs(float((kept == 0).double().mean()) - p) < 5 * deviation


def test_backward_uses_the_mask_of_forward() -> None:
    x = torch.ones(64, 64, requires_grad=True)
    y = Block(SIZES, open_partition(TrainingCase(), 0), 0).drop_1(x, MicroBatch(length=16, seed=7))
    y.sum().backward()
    assert torch.equal(x.grad if x.grad is not None else x, y.detach())


def test_eval_mode_drops_nothing() -> None:
    part = open_partition(TrainingCase(), 0)
    x, block = torch.ones(8, 8), Block(SIZES, part, 0).eval()
    batch = MicroBatch(length=4, seed=1)
    assert block.drop_1(x, batch) is x
    assert Block(replace(SIZES, resid_pdrop=0.0), part, 0).drop_1(x, batch) is x
    q = torch.randn(1, 2, 6, 8)
    plain = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert torch.equal(block.attn.attend(q, q, q, batch), plain)


@pytest.mark.parametrize("site", ["embd_pdrop", "resid_pdrop", "attn_pdrop"])
def test_each_dropout_rate_changes_the_output(site: str) -> None:
    off: dict[str, Any] = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    run = TrainingCase()
    ids = samples(run, 1)[0]
    losses = []
    for rates in (off, {**off, site: P}):
        model = build(run, open_partition(run, 0))
        dropping = GPT(replace(run.config, **rates), model.parallel)
        dropping.load_state_dict(model[0].state_dict())
        losses.append(dropping(dropping.embed(ids, 3), run.length, 3))
    assert float((losses[0] - losses[1]).detach().norm() / losses[0].detach().norm()) > 1e-3


def seeds_of(
    first: int, last: int, *, seed: int = 3, rounds: int = 3
) -> list[tuple[int, int, int]]:
    """Train steps first..last and return the seeds of each micro-batch: (of the embedding, of the
    blocks, of the recomputed blocks)."""
    run = TrainingCase(checkpoint=True, dropout=P)
    model = build(run, open_partition(run, 0))
    stepper = replace(make_stepper(run, model, model.parallel.axes["world"]), seed=seed)
    embedded: list[int] = []
    blocks: list[int] = []
    embed, forward = GPT.embed, Block.forward

    def noting_embed(self: GPT, ids: Tensor, seed: int = 0) -> Tensor:
        embedded.append(seed)
        return embed(self, ids, seed)

    def noting_forward(self: Block, x: Tensor, batch: MicroBatch) -> Tensor:
        blocks.append(batch.seed)
        return forward(self, x, batch)

    with patch.object(GPT, "embed", noting_embed), patch.object(Block, "forward", noting_forward):
        for step in range(first, last + 1):
            batch = samples(run, step)
            stepper.run(step, [batch] * rounds, targets=83, lr=0.0)
    assert len(blocks) == 2 * run.config.n_layer * len(embedded)
    four = [blocks[n : n + 4] for n in range(0, len(blocks), 4)]
    assert all(len(set(seeds)) == 1 for seeds in four)
    return [(seed, some[0], some[3]) for seed, some in zip(embedded, four, strict=True)]


def test_each_micro_batch_of_each_step_has_a_unique_seed() -> None:
    seeds = seeds_of(1, 4)
    assert len(set(seeds)) == len(seeds) == 12
    assert all(len(set(of_one)) == 1 for of_one in seeds)
    assert seeds_of(3, 4) == seeds[6:], "a resumed run draws the same seeds"
    assert not set(seeds_of(1, 4, seed=4)) & set(seeds)


@pytest.mark.parametrize(
    "run",
    [
        TrainingCase(),
        TrainingCase(mode="1d", tensor=2),
        TrainingCase(mode="2d", tensor=4, accumulation=2),
    ],
    ids=lambda run: run.name,
)
def test_recomputation_draws_the_same_masks(run: TrainingCase) -> None:
    """Training with and without activation checkpointing gives the same bits."""
    runs = [replace(run, checkpoint=which, dropout=P) for which in (False, True, False)]
    plain, recomputed, again = run_world(run.layout.gpus, train_all, runs)[0]
    assert same_bits(plain, again)
    assert same_bits(plain, recomputed)


def same_bits(a: TrainingResult, b: TrainingResult) -> bool:
    return (
        a.losses == b.losses
        and a.norms == b.norms
        and all(torch.equal(w, b.parameters[name]) for name, w in a.parameters.items())
    )


@pytest.mark.parametrize("checkpoint", [False, True])
def test_dropout_neither_reads_nor_advances_the_global_generator(checkpoint: bool) -> None:
    run = TrainingCase(dropout=P, checkpoint=checkpoint, steps=2)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(train(0, 1, run))
        assert torch.equal(torch.get_rng_state(), before)
    assert same_bits(*results)


def test_training_step_applies_dropout() -> None:
    """A model that never applies dropout would pass the other tests of this module."""
    with_it, without = (train(0, 1, TrainingCase(dropout=p, steps=1)) for p in (P, 0.0))
    assert abs(with_it.losses[0] / without.losses[0] - 1) > 1e-4
