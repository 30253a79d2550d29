"""Gradients: reduced once, in buckets, while backward runs; one norm for the whole model."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from engine.plan import make_plan
from engine.training import gradients
from engine.training.gradients import GradientReducer, local_grad_norm_squared, unscale_and_clip
from models.chunks import ModelChunks
from models.parallel.collectives import Traffic
from models.parallel.context import ParallelContext
from tests.support.local_shards import summed
from tests.support.runs import build_empty
from tests.support.training import TrainingCase, build, gathered, open_partition, rounds, samples
from tests.support.worlds import run_world

RUNS = [
    TrainingCase(mode="1d", tensor=2, data=2, accumulation=3, dtype=torch.float64),
    TrainingCase(mode="2d", tensor=4, accumulation=3, dtype=torch.float64),
    TrainingCase(
        mode="2.5d", tensor=2, depth=2, data=2, accumulation=3, tied=False, dtype=torch.float64
    ),
    TrainingCase(data=4, accumulation=3, checkpoint=True, dtype=torch.float64),
]


def backward(model: ModelChunks, run: TrainingCase, part: ParallelContext, number: int) -> None:
    """Run the backward pass of one accumulation round."""
    ids, targets = rounds(run, samples(run, 1), part.axes["data"].index)[number]
    (gpt,) = model
    gpt.loss(gpt(gpt.embed(ids), run.length), targets, 1 / 83).backward()


def by_hand(run: TrainingCase, part: ParallelContext) -> dict[str, Tensor]:
    """Return every gradient of all rounds, summed one by one over its replicated axes."""
    model = build(run, part)
    for number in range(run.accumulation):
        backward(model, run, part, number)
    boxes = model.shards()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: summed(gradient, boxes[name], part) for name, gradient in found.items()}


def observe(rank: int, size: int, run: TrainingCase, bucket_bytes: int) -> dict[str, Any]:
    """Run one accumulated step with ``GradientReducer``, and record the bytes sent over data."""
    traffic = Traffic()
    part = open_partition(run, rank, traffic)
    expected = by_hand(run, part)
    model = build(run, part)
    with patch.object(gradients, "BUCKET_BYTES", bucket_bytes):
        sums = GradientReducer(model)
    sent: list[int] = []  # over data, by when the gradient of the positions, the last one, is there
    model[0].wpe.weight.register_post_accumulate_grad_hook(
        lambda _: sent.append(over(traffic, "data"))
    )
    traffic.reset()
    sums.zero()
    for number in range(run.accumulation):
        last = number == run.accumulation - 1
        with sums.final_backward() if last else nullcontext():
            backward(model, run, part, number)
    sums.wait()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    whole = gathered(model, found, size)
    share = local_grad_norm_squared(model)
    part.axes["world"].all_reduce(share)
    return {
        "errors": {n: float((found[n] - g).norm() / g.norm()) for n, g in expected.items()},
        "sent": sent,
        "sent in all": over(traffic, "data"),
        "held": sum(p.nbytes for p in model.parameters()),
        "buckets": len(sums.buckets),
        "kinds": len({tuple(axis.name for axis in bucket.axes) for bucket in sums.buckets}),
        "norm": float(share.sqrt()),
        "whole norm": float(torch.cat([g.flatten() for g in whole.values()]).norm()),
    }


def over(traffic: Traffic, axis: str) -> int:
    return sum(sent for (name, _), sent in traffic.bytes.items() if name == axis)


def observe_all(rank: int, size: int) -> list[list[dict[str, Any]]]:
    return [[observe(rank, size, run, limit) for limit in (200, 1 << 20)] for run in RUNS]


@cache
def observed() -> list[list[list[dict[str, Any]]]]:
    """Return results by rank and run: with small buckets, and with one bucket per set of axes."""
    return run_world(4, observe_all)


def of_all_ranks(run: TrainingCase) -> list[dict[str, Any]]:
    return [result for rank in observed() for result in rank[RUNS.index(run)]]


each_run = pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])


@each_run
def test_reduced_gradients_equal_sums_over_the_replicated_axes(run: TrainingCase) -> None:
    for result in of_all_ranks(run):
        wrong = {name: e for name, e in result["errors"].items() if not e <= 1e-14}
        assert not wrong


@each_run
def test_buckets_are_filled_to_their_limit(run: TrainingCase) -> None:
    for small, large in (rank[RUNS.index(run)] for rank in observed()):
        assert large["buckets"] == large["kinds"]
        assert small["buckets"] > small["kinds"]


@each_run
def test_no_gradient_is_sent_before_the_last_accumulation_round(run: TrainingCase) -> None:
    for result in of_all_ranks(run):
        assert len(result["sent"]) == run.accumulation
        assert not any(result["sent"][:-1])


@each_run
def test_reduction_overlaps_backward(run: TrainingCase) -> None:
    """The gradient of the positions is the last; by then the other buckets have been sent. In
    2.5d the data axis is reduced after another axis, so nothing is asserted."""
    for small, _ in (rank[RUNS.index(run)] for rank in observed()):
        if run.data > 1 and run.mode != "2.5d":
            assert small["sent"][-1] > small["sent in all"] / 4


@each_run
def test_data_ranks_send_each_gradient_once(run: TrainingCase) -> None:
    """An all-reduce sends 2 (n - 1) / n of a bucket, and n - 1 times a bucket below 64 KiB."""
    for small, large in (rank[RUNS.index(run)] for rank in observed()):
        assert small["sent in all"] == (run.data - 1) * small["held"]
        upper = (run.data - 1) * large["held"]
        assert 2 * upper // run.data - 8 * large["buckets"] <= large["sent in all"] <= upper


@each_run
def test_the_norm_equals_the_norm_of_the_unsharded_gradient(run: TrainingCase) -> None:
    for result in of_all_ranks(run):
        assert result["norm"] == pytest.approx(result["whole norm"], rel=1e-14)


def alone(dtype: torch.dtype = torch.float32) -> tuple[ModelChunks, TrainingCase, ParallelContext]:
    run = TrainingCase(dtype=dtype)
    part = open_partition(run, 0)
    return build(run, part), run, part


@pytest.mark.parametrize("limit", [0.01, 0.5, 1e3, None])
def test_clipping_equals_torchs(limit: float | None) -> None:
    model, run, part = alone()
    backward(model, run, part, 0)
    plain = [torch.zeros_like(p, requires_grad=True) for p in model.parameters()]
    for copy, parameter in zip(plain, model.parameters(), strict=True):
        assert parameter.grad is not None
        copy.grad = parameter.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(plain, limit if limit is not None else torch.inf)
    norm = float(local_grad_norm_squared(model).sqrt())
    assert norm == pytest.approx(float(expected), rel=1e-6)
    unscale_and_clip(model, norm, limit)
    for copy, parameter in zip(plain, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, copy.grad, rtol=2e-6, atol=0)


def test_a_new_step_starts_from_zero_gradients() -> None:
    model, run, part = alone()
    sums = GradientReducer(model)
    for _ in range(2):
        sums.zero()
        with sums.final_backward():
            backward(model, run, part, 0)
        sums.wait()
        norm = float(local_grad_norm_squared(model))
    once, *_ = alone()
    backward(once, run, part, 0)
    assert norm == float(local_grad_norm_squared(once))


def test_buckets_of_offloaded_weights_are_on_the_host(tmp_path: Path) -> None:
    """In 2.5d on grids of one, weights and biases are reduced over the same axis."""
    path = tmp_path / "deep.py"
    path.write_text(DEEP_OFFLOADED)
    model = build_empty(make_plan(path, gpus=2, environ={}), 0)
    sums = GradientReducer(model)
    assert {bucket.flat.device.type for bucket in sums.buckets} == {"cpu", "meta"}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.device == parameter.device, name


DEEP_OFFLOADED = """
BATCH_SIZE = 2
SEQ_LEN = 8
MAX_STEPS = 1
TENSOR_PARALLEL = 2
MODE = "2.5d"
DEPTH = 2
zero = dict(stage=1, offload="cpu")
model = dict(n_layer=1, n_head=4, n_embd=16, vocab_size=32)
data = dict(type="synthetic")
"""


def no_backward_in_the_last_round(rank: int, size: int, run: TrainingCase) -> list[float]:
    """Run no backward pass in ``final_backward()``, as a rank without a last micro-batch."""
    part = open_partition(run, rank)
    model, expected = build(run, part), by_hand(run, part)
    sums = GradientReducer(model)
    sums.zero()
    for number in range(run.accumulation):
        backward(model, run, part, number)
    with sums.final_backward():
        pass
    sums.wait()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [float((found[name] - g).norm() / g.norm()) for name, g in expected.items()]


def test_buckets_that_backward_did_not_complete_are_reduced_too() -> None:
    run = TrainingCase(data=2, accumulation=2, dtype=torch.float64)
    for errors in run_world(2, no_backward_in_the_last_round, run):
        assert all(error <= 1e-14 for error in errors)


def precision(rank: int, size: int, run: TrainingCase) -> set[torch.dtype]:
    part = open_partition(run, rank)
    model = build(run, part)
    sums = GradientReducer(model)
    with sums.final_backward():
        backward(model, run, part, 0)
    sums.wait()
    return {bucket.flat.dtype for bucket in sums.buckets} | {
        p.grad.dtype for p in model.parameters() if p.grad is not None
    }


def test_bf16_gradients_are_summed_in_float32() -> None:
    run = TrainingCase(mode="1d", tensor=2, compute=torch.bfloat16)
    assert run_world(2, precision, run) == [{torch.float32}] * 2
