"""Faults to plant in the model, its sharding or its gradients, each with a training that must
detect it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

import engine.training.step
from engine.training import gradients
from engine.training.gradients import GradientReducer
from models import gpt
from models.chunks import ModelChunks
from models.gpt import GPT
from models.parallel import attention, attention_blocks, dropout, layers, loss, matmul
from models.parallel.collectives import Axis, gather
from models.parallel.context import ParallelContext
from models.parallel.initialise import init_normal_
from models.parallel.key_exchange import Returned, SampleGroup
from models.parallel.layers import Linear, PositionEmbedding, ShardedModule
from models.parallel.mode import Gather, Mode
from models.parallel.norm import LayerNorm
from models.parallel.registry import modes
from models.parallel.rows import RowOrder, Segment
from models.parallel.shard import Shard
from tests.support import training
from tests.support.training import TrainingCase

Few = partial(TrainingCase, dtype=torch.float64, steps=2)
COLUMNS = Few(mode="1d", tensor=2, data=2, accumulation=2)
GRID = Few(mode="2d", tensor=4, samples=6, accumulation=2)
DEEP = Few(mode="2.5d", tensor=2, depth=2, data=2, tied=False)
CUBE = Few(mode="3d", tensor=8)
SHARED = Few(mode="2d", tensor=4, samples=3, length=7, ignored=2)  # a row is added
SEQUENCE = Few(mode="sequence", tensor=2, samples=1, length=13, ignored=2)
RING = replace(SEQUENCE, tensor=4, length=14, context="ring")
DROPPING = Few(mode="2d", tensor=4, samples=6, accumulation=2, dropout=0.3)
RUNS = [COLUMNS, GRID, DEEP, CUBE, SHARED, SEQUENCE, RING, DROPPING]


@dataclass(frozen=True, kw_only=True)
class PlantedFault:
    """A fault, and the training that must detect it."""

    run: TrainingCase
    plant: Callable[[], AbstractContextManager[Any]]


FAULTS: dict[str, PlantedFault] = {}


def shown_by(run: TrainingCase) -> Callable[[Callable[[], Iterator[None]]], None]:
    """Register a context manager that plants the fault."""

    def register(plant: Callable[[], Iterator[None]]) -> None:
        FAULTS[plant.__name__] = PlantedFault(run=run, plant=contextmanager(plant))

    return register


def unsummed(lost: Callable[[ShardedModule, str, str], bool]) -> AbstractContextManager[Any]:
    """Skip the sum of gradients of (module, parameter) over an axis if ``lost`` returns True."""

    def faulty(model: ModelChunks) -> GradientReducer:
        owners = {
            id(box): (module, name)
            for chunk in model
            for module in chunk.modules()
            if isinstance(module, ShardedModule)
            for name, box in module.shards.items()
        }
        healthy = gradients.replicated_axes

        def uncut(box: Shard, axes: dict[str, Axis]) -> tuple[str, ...]:
            return tuple(a for a in healthy(box, axes) if not lost(*owners[id(box)], a))

        with patch.object(gradients, "replicated_axes", uncut):
            return GradientReducer(model)

    return patch.object(training, "GradientReducer", faulty)


def table(name: str, change: Callable[[Mode], Mode]) -> AbstractContextManager[Any]:
    """Replace a mode's table by one with a mistake."""
    return patch.object(training, "modes", lambda: {**modes(), name: change(modes()[name])})


@shown_by(GRID)
def the_gradient_of_norms_is_not_summed() -> Iterator[None]:
    with unsummed(lambda module, name, axis: isinstance(module, LayerNorm)):
        yield


@shown_by(GRID)
def the_gradient_of_biases_is_not_summed() -> Iterator[None]:
    with unsummed(lambda module, name, axis: isinstance(module, Linear) and name == "bias"):
        yield


@shown_by(DEEP)
def gradients_are_not_summed_over_depth() -> Iterator[None]:
    with unsummed(lambda module, name, axis: axis == "d"):
        yield


@shown_by(SEQUENCE)
def gradients_are_not_summed_over_the_ranks_of_a_sample() -> Iterator[None]:
    with unsummed(lambda module, name, axis: axis == "s"):
        yield


@shown_by(COLUMNS)
def gradients_are_not_summed_over_data() -> Iterator[None]:
    with unsummed(lambda module, name, axis: axis == "data"):
        yield


@shown_by(COLUMNS)
def only_the_last_round_counts() -> Iterator[None]:
    healthy = GradientReducer.final_backward

    def complete(self: GradientReducer) -> AbstractContextManager[None]:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        return healthy(self)

    with patch.object(GradientReducer, "final_backward", complete):
        yield


@shown_by(GRID)
def weights_are_gathered_over_the_wrong_axis() -> Iterator[None]:
    with table("2d", lambda mode: replace(mode, up=replace(mode.up, gather_w="c"))):
        yield


@shown_by(CUBE)
def inputs_are_gathered_over_the_wrong_axis() -> Iterator[None]:
    wrong = Gather(axis="b", on="T")
    with table("3d", lambda mode: replace(mode, down=replace(mode.down, gather_x=wrong))):
        yield


@shown_by(CUBE)
def outputs_are_scattered_over_the_wrong_axis() -> Iterator[None]:
    with table("3d", lambda mode: replace(mode, up=replace(mode.up, scatter_y="b"))):
        yield


@shown_by(CUBE)
def two_axes_cut_a_weight_in_the_wrong_order() -> Iterator[None]:
    with table("3d", lambda mode: replace(mode, up=replace(mode.up, weight_in=("b", "c")))):
        yield


@shown_by(GRID)
def embeddings_are_not_swapped() -> Iterator[None]:
    with table("2d", lambda mode: replace(mode, lookup=replace(mode.lookup, swap=None))):
        yield


@shown_by(COLUMNS)
def the_loss_is_not_scaled() -> Iterator[None]:
    healthy = GPT.loss
    with patch.object(GPT, "loss", lambda self, x, targets, scale: healthy(self, x, targets, 1.0)):
        yield


@shown_by(COLUMNS)
def the_loss_is_a_mean_of_means() -> Iterator[None]:
    healthy, shares = GPT.loss, COLUMNS.data * COLUMNS.accumulation

    def mean(self: GPT, x: Tensor, targets: Tensor, scale: float) -> Tensor:
        counted = int((targets != -100).sum())
        return healthy(self, x, targets, 1 / max(counted, 1) / shares)

    with patch.object(GPT, "loss", mean):
        yield


@shown_by(GRID)
def every_rank_reports_the_loss_of_shared_rows() -> Iterator[None]:
    with patch.object(loss.Head, "counts_loss", True):
        yield


@shown_by(GRID)
def padding_of_the_vocabulary_has_a_share_of_the_softmax() -> Iterator[None]:
    with patch.object(Shard, "is_padded", False):
        yield


@shown_by(COLUMNS)
def targets_are_looked_up_at_the_wrong_offset() -> Iterator[None]:
    healthy = loss.cross_entropy

    def shifted(
        logits: Tensor, targets: Tensor, scale: float, head: Any, needs_gradient: bool
    ) -> Any:
        box = replace(head.shard, offset=(0, 0))
        return healthy(logits, targets, scale, replace(head, shard=box), needs_gradient)

    with patch.object(loss, "cross_entropy", shifted):
        yield


@shown_by(SHARED)
def rows_without_a_token_count() -> Iterator[None]:
    healthy = ParallelContext.arrange

    def arrange(self: ParallelContext, x: Tensor, length: int, *, padding: int) -> Tensor:
        return healthy(self, x, length, padding=max(padding, 0))

    with patch.object(ParallelContext, "arrange", arrange):
        yield


@shown_by(SHARED)
def keys_come_from_another_sample() -> Iterator[None]:
    healthy = RowOrder.segments

    def shifted(self: RowOrder, member: int) -> list[Segment]:
        return [
            replace(segment, first=max(0, segment.first - self.length))
            for segment in healthy(self, member)
        ]

    with patch.object(RowOrder, "segments", shifted):
        yield


@shown_by(SHARED)
def positions_are_off_by_one_at_the_border_of_a_shard() -> Iterator[None]:
    healthy = RowOrder.segments

    def shifted(self: RowOrder, member: int) -> list[Segment]:
        return [
            replace(segment, start=segment.start - 1, stop=segment.stop - 1)
            if segment.start and segment.row
            else segment
            for segment in healthy(self, member)
        ]

    with patch.object(RowOrder, "segments", shifted):
        yield


@shown_by(RING)
def gradients_of_keys_that_travelled_are_not_summed() -> Iterator[None]:
    with patch.object(Returned, "add_to", lambda self, sums: self.handle.wait()):
        yield


@shown_by(RING)
def keys_are_used_as_those_of_another_round() -> Iterator[None]:
    healthy = SampleGroup.received

    def shifted(self: SampleGroup, number: int) -> list[range]:
        order, (step, *_) = self.order, self.rounds[number]
        other = (self.member + step % (order.group - 1) + 1) % order.group
        sizes = [len(tokens) for tokens in healthy(self, number)]
        wrong = order.tokens_in(other, range(order.local))
        return [range(some.start, some.start + n) for some, n in zip(wrong, sizes, strict=False)]

    with patch.object(SampleGroup, "received", shifted):
        yield


@shown_by(RING)
def late_pieces_of_two_ranks_are_exchanged() -> Iterator[None]:
    healthy = SampleGroup.fetch

    def swapped(self: SampleGroup, kv: Tensor, number: int) -> Any:
        late = kv[self.order.early :]
        other = late.roll(1, 0) if self.member == 2 else late
        return healthy(self, torch.cat([kv[: self.order.early], other]), number)

    with patch.object(SampleGroup, "fetch", swapped):
        yield


@shown_by(RING)
def blocks_of_keys_are_merged_in_half_precision() -> Iterator[None]:
    healthy = attention_blocks.merge

    def rounded(*results: Tensor) -> Any:
        out, lse, other, other_lse = results
        return healthy(out, lse.bfloat16().to(lse), other, other_lse.bfloat16().to(lse))

    with patch.object(attention, "merge", rounded):
        yield


@shown_by(DROPPING)
def masks_begin_at_the_first_feature_of_a_shard() -> Iterator[None]:
    healthy = dropout.dropped

    def shifted(p: float, states: Tensor, columns: Any) -> Tensor:
        return healthy(p, states, [range(len(some)) for some in columns])

    with patch.object(dropout, "dropped", shifted):
        yield


@shown_by(DROPPING)
def masks_of_attention_begin_at_the_first_head_of_a_shard() -> Iterator[None]:
    healthy = attention.AttentionDropout
    with patch.object(gpt, "AttentionDropout", lambda **how: healthy(**{**how, "first_head": 0})):
        yield


@shown_by(DROPPING)
def samples_are_numbered_anew_in_every_micro_batch() -> Iterator[None]:
    with patch.object(engine.training.step, "seed_from_sample", lambda seed, sample: seed):
        yield


@shown_by(COLUMNS)
def a_shard_is_shifted() -> Iterator[None]:
    healthy = ParallelContext.shard

    def box(
        self: ParallelContext, shape: tuple[int, ...], cut: Any, *, row_multiple: int = 1
    ) -> Shard:
        if shape == (COLUMNS.config.n_embd, COLUMNS.config.n_inner):
            index = {**self.index, "t": (self.index["t"] + 1) % self.sizes["t"]}
            return healthy(replace_index(self, index), shape, cut)
        return healthy(self, shape, cut, row_multiple=row_multiple)

    with patch.object(ParallelContext, "shard", box):
        yield


def replace_index(part: ParallelContext, index: dict[str, int]) -> ParallelContext:
    moved = replace(part)
    object.__setattr__(moved, "index", index)
    return moved


@shown_by(GRID)
def weights_are_drawn_by_local_position() -> Iterator[None]:

    def local(tensor: Tensor, box: Shard, **how: Any) -> None:
        init_normal_(tensor, replace(box, offset=(0,) * len(box.offset)), **how)

    with patch.object(layers, "init_normal_", local):
        yield


@shown_by(COLUMNS)
def tokens_are_gathered_in_the_wrong_order() -> Iterator[None]:
    with patch.object(matmul, "gather", flipped("T")):
        yield


@shown_by(GRID)
def features_are_gathered_in_the_wrong_order() -> Iterator[None]:
    with patch.object(matmul, "gather", flipped("H")):
        yield


def flipped(wrong: str) -> Callable[..., Tensor]:
    def backwards(x: Tensor, axis: Axis | None, dim: Any) -> Tensor:
        y = gather(x, axis, dim)
        if axis is None or dim != wrong:
            return y
        return torch.cat(y.chunk(axis.size, "TH".index(dim))[::-1], "TH".index(dim))

    return backwards


@shown_by(GRID)
def a_reduce_scatter_adds_nothing() -> Iterator[None]:
    healthy = Axis.reduce_scatter

    def local_part(self: Axis, x: Tensor) -> Tensor:
        return x[self.index].clone() if self.group else healthy(self, x)

    with patch.object(Axis, "reduce_scatter", local_part):
        yield


@shown_by(GRID)
def a_norm_sees_its_own_features_only() -> Iterator[None]:
    def local(self: LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:], self.weight, self.bias, self.eps)

    with patch.object(LayerNorm, "forward", local):
        yield


@shown_by(GRID)
def a_norm_adds_nothing_up_in_backward() -> Iterator[None]:
    healthy = Axis.all_reduce

    def lazy(self: Axis, x: Tensor) -> Tensor:
        return x if self.name == "c" else healthy(self, x)

    with patch.object(Axis, "all_reduce", lazy):
        yield


@shown_by(COLUMNS)
def positions_start_anew_on_every_rank() -> Iterator[None]:
    def anew(self: PositionEmbedding, batch: int, length: int, start: int = 0) -> Tensor:
        rows = self.parallel.rows(batch * length, self.parallel.mode.outer.tokens)
        return self.weight[start + torch.arange(rows.stop - rows.start) % length]

    with patch.object(PositionEmbedding, "forward", anew):
        yield


@shown_by(SEQUENCE)
def positions_of_a_rank_are_off_by_one() -> Iterator[None]:
    healthy = PositionEmbedding.forward

    def shifted(self: PositionEmbedding, batch: int, length: int, start: int = 0) -> Tensor:
        return healthy(self, batch, length, start + self.parallel.index["s"])

    with patch.object(PositionEmbedding, "forward", shifted):
        yield


@shown_by(GRID)
def gradients_are_clipped_by_the_local_norm() -> Iterator[None]:
    def local(model: ModelChunks, norm: float, limit: float | None, scale: float) -> None:
        gradients.unscale_and_clip(
            model, gradients.local_grad_norm_squared(model).sqrt().item(), limit, scale
        )

    with patch.object(engine.training.step, "unscale_and_clip", local):
        yield


@shown_by(GRID)
def copies_count_in_the_gradient_norm() -> Iterator[None]:
    def everything(model: ModelChunks) -> Tensor:
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return torch.stack([g.double().square().sum() for g in grads]).sum()

    with patch.object(engine.training.step, "local_grad_norm_squared", everything):
        yield


@shown_by(COLUMNS)
def data_ranks_read_the_same_samples() -> Iterator[None]:
    healthy = training.rounds
    with patch.object(training, "rounds", lambda run, batch, index: healthy(run, batch, 0)):
        yield
