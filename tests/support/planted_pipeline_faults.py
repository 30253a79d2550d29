"""Faults to plant in pipelines, ZeRO and the loss scale; registered with those of the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

import engine.training.step
from engine.pipeline import p2p
from engine.pipeline.p2p import P2POp
from engine.pipeline.schedule import Action, PipelineShape
from engine.training import gradients, pipeline
from engine.training.gradients import GradientReducer
from engine.training.pipeline import WorkKey, _PipelineRun
from models.chunks import ModelChunks
from models.parallel import layers, zero
from models.parallel.collectives import Axis, scatter
from models.parallel.initialise import init_normal_
from models.parallel.shard import Shard
from models.parallel.zero import InputSharding, Zero
from tests.support.planted_faults import Few, flipped, shown_by, unsummed
from tests.support.training import TrainingCase

STAGES = Few(pipeline=2, micro_batches=4, schedule="gpipe", samples=16)
DRAIN = Few(pipeline=2, data=2, micro_batches=2, samples=16)
BUBBLE = Few(pipeline=2, data=2, micro_batches=2, samples=16, schedule="zero_bubble")
ONCE = Few(data=2, zero=1, accumulation=2)
UNEVEN = Few(data=3, zero=2, accumulation=2)  # no width divides by three
ALWAYS = Few(data=2, zero=3, accumulation=2)
DEEP = Few(mode="2.5d", tensor=2, depth=2, data=2, zero=1, accumulation=2)
OVER_DEPTH = Few(mode="2.5d", tensor=2, depth=2, zero=3, zero_depth=True, accumulation=2)
FP16 = TrainingCase(pipeline=2, samples=16, steps=2, compute=torch.float16)
SHARDED = Few(mode="1d", tensor=2, pipeline=2, micro_batches=2, samples=8)
RUNS = [STAGES, SHARDED, DRAIN, BUBBLE, ONCE, UNEVEN, ALWAYS, DEEP, OVER_DEPTH, FP16]


@shown_by(STAGES)
def tied_gradients_are_not_swapped() -> Iterator[None]:
    with patch.object(GradientReducer, "_all_reduce_tied", lambda self: None):
        yield


@shown_by(SHARDED)
def tied_shards_of_a_table_are_not_summed() -> Iterator[None]:
    with patch.object(GradientReducer, "_all_reduce_tied", lambda self: None):
        yield


@shown_by(STAGES)
def a_tied_table_counts_twice_in_the_norm() -> Iterator[None]:
    with patch.object(ModelChunks, "copies", frozenset()):
        yield


@shown_by(STAGES)
def a_stage_s_norm_is_not_everyone_s() -> Iterator[None]:
    with norm_of(lambda axes: axes["pipeline"].index == 0):
        yield


@shown_by(STAGES)
def layers_are_drawn_by_their_place_in_the_stage() -> Iterator[None]:
    def local(tensor: Tensor, box: Shard, *, name: str, **how: Any) -> None:
        init_normal_(tensor, box, name=re.sub(r"h\.\d+", "h.0", name), **how)

    with patch.object(layers, "init_normal_", local):
        yield


@shown_by(STAGES)
def messages_of_micro_batches_are_crossed() -> Iterator[None]:
    """Swap the first two messages that a rank receives, if both arrive before either is used."""
    healthy = p2p.insert_p2p

    def crossed(
        orders: Sequence[Sequence[Action]], shape: PipelineShape
    ) -> list[list[Action | P2POp]]:
        return [_crossed(items) for items in healthy(orders, shape)]

    with patch.object(pipeline, "insert_p2p", crossed):
        yield


def _crossed(items: list[Action | P2POp]) -> list[Action | P2POp]:
    positions = [
        position
        for position, item in enumerate(items)
        if isinstance(item, P2POp) and item.direction == "receive" and item.payload == "forward"
    ][:2]
    if len(positions) == 2 and not any(isinstance(item, Action) for item in items[: positions[1]]):
        one, other = (items[position] for position in positions)
        items[positions[0]] = replace(one, micro_batch=other.micro_batch)
        items[positions[1]] = replace(other, micro_batch=one.micro_batch)
    return items


@shown_by(DRAIN)
def sums_begin_before_the_last_micro_batch() -> Iterator[None]:
    def early(self: _PipelineRun, action: Action) -> AbstractContextManager[None]:
        assert self.reducer is not None
        return self.reducer.final_backward()

    with patch.object(_PipelineRun, "_final_backward", early):
        yield


@shown_by(BUBBLE)
def put_off_gradients_are_lost() -> Iterator[None]:
    def lazy(self: _PipelineRun, action: Action) -> None:
        self.deferred.pop(WorkKey(action.chunk, action.micro_batch))

    with patch.object(_PipelineRun, "backward_weight", lazy):
        yield


@shown_by(BUBBLE)
def put_off_gradients_are_summed_before_they_are_there() -> Iterator[None]:
    """Count a gradient as ready when autograd calls the hook without one."""
    with patch.object(GradientReducer, "_hook", lambda self, parameter: self.mark_ready(parameter)):
        yield


@shown_by(ONCE)
def gathered_weights_are_stale() -> Iterator[None]:
    with patch.object(Zero, "clear_gathered", lambda self: None):
        yield


@shown_by(ONCE)
def only_the_last_micro_batch_is_scattered() -> Iterator[None]:
    def forgetful(self: Zero, weight: Tensor, gradient: Tensor, sharding: InputSharding) -> None:
        self._accumulated[id(weight)] = zero._AccumulatedGradient(
            weight=weight, sharding=sharding, total=gradient
        )

    with patch.object(Zero, "scatter", forgetful):
        yield


@shown_by(ONCE)
def what_zero_does_not_cut_is_not_summed() -> Iterator[None]:
    with unsummed(lambda module, name, axis: axis == "data"):
        yield


@shown_by(DEEP)
def pieces_are_not_summed_over_depth() -> Iterator[None]:
    with unsummed(lambda module, name, axis: axis == "d" and name == "weight"):
        yield


@shown_by(UNEVEN)
def padding_of_pieces_comes_first() -> Iterator[None]:
    def pad(x: Tensor, after: tuple[int, ...]) -> Tensor:
        return F.pad(x, tuple(n for k in range(0, len(after), 2) for n in after[k : k + 2][::-1]))

    with patch.object(zero, "F", SimpleNamespace(pad=pad)):
        yield


@shown_by(ALWAYS)
def pieces_are_scattered_in_the_wrong_order() -> Iterator[None]:
    def backwards(y: Tensor, axis: Axis | None, dim: Any) -> Tensor:
        if axis is None:
            return y
        turned = torch.cat(y.chunk(axis.size, "TH".index(dim))[::-1], "TH".index(dim))
        return scatter(turned, axis, dim)

    with patch.object(zero, "scatter", backwards):
        yield


@shown_by(ALWAYS)
def pieces_are_gathered_in_the_wrong_order() -> Iterator[None]:
    with patch.object(zero, "gather", flipped("T")):
        yield


@shown_by(OVER_DEPTH)
def pieces_over_depth_are_not_summed() -> Iterator[None]:
    def own(y: Tensor, axis: Axis | None, dim: Any) -> Tensor:
        return y.chunk(axis.size, "TH".index(dim))[axis.index].clone() if axis else y

    with patch.object(zero, "scatter", own):
        yield


@shown_by(OVER_DEPTH)
def pieces_are_summed_over_depth_again() -> Iterator[None]:
    with summed_over("d"):
        yield


@shown_by(ALWAYS)
def pieces_are_summed_over_data_again() -> Iterator[None]:
    with summed_over("data"):
        yield


@shown_by(ALWAYS)
def one_rank_s_pieces_make_the_norm() -> Iterator[None]:
    with norm_of(lambda axes: axes["data"].index == 0):
        yield


@shown_by(FP16)
def the_loss_scale_is_not_divided_out() -> Iterator[None]:
    def unscaled(model: ModelChunks, norm: float, limit: float | None, scale: float) -> None:
        gradients.unscale_and_clip(model, norm, limit)

    with patch.object(engine.training.step, "unscale_and_clip", unscaled):
        yield


@shown_by(FP16)
def the_norm_is_scaled() -> Iterator[None]:
    def scaled(model: ModelChunks, norm: float, limit: float | None, scale: float) -> None:
        gradients.unscale_and_clip(model, norm * scale, limit, scale)

    with patch.object(engine.training.step, "unscale_and_clip", scaled):
        yield


def summed_over(axis: str) -> AbstractContextManager[Any]:
    """Sum all gradients over an axis, including those that it shards."""
    healthy = gradients.replicated_axes

    def uncut(box: Shard, axes: dict[str, Axis]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*healthy(box, axes), axis)))

    return patch.object(gradients, "replicated_axes", uncut)


def norm_of(counts: Callable[[Any], bool]) -> AbstractContextManager[Any]:
    """Leave ranks out of the gradient's norm if ``counts`` is False for them."""
    healthy = gradients.local_grad_norm_squared

    def share(model: ModelChunks) -> Tensor:
        squares = healthy(model)
        return squares if counts(model.parallel.axes) else torch.zeros_like(squares)

    return patch.object(engine.training.step, "local_grad_norm_squared", share)
