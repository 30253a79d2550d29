"""Statistics of whole tensors, in several layouts: those of one process, and of plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import engine.training.step
from engine.training import activations, step_statistics
from engine.training.activations import _Observer
from engine.training.step_statistics import StepStatistics
from engine.training.tensor_statistics import Statistics, moments
from models.chunks import ModelChunks
from models.gpt import GPT, Block
from models.parallel.micro_batch import MicroBatch
from tests.support.training import (
    TrainingCase,
    build,
    gathered,
    make_stepper,
    open_partition,
    open_training,
    rounds,
    samples,
)
from tests.support.worlds import run_world

Few = partial(TrainingCase, dtype=torch.float64, steps=2, inner=27, layers=2)
COLUMNS = Few(mode="1d", tensor=2, accumulation=2)
GRID = Few(mode="2d", tensor=4, samples=6, accumulation=2)  # three a round: one is added
STAGES = Few(pipeline=2, data=2, zero=3, micro_batches=3, checkpoint=True)
CUBE = Few(mode="3d", tensor=8, inner=28)
ON_DISK = Few(zero=1, disk="states")
HALF = Few(dtype=torch.float32, compute=torch.float16, clip=None, steps=1)
Found = list[dict[str, Statistics]]


def observe(rank: int, size: int, case: TrainingCase) -> tuple[Found, list[float]]:
    """Return the statistics and the gradient norm of each step."""
    found, norms = [], []
    with open_training(case, rank) as (model, stepper):
        stepper = replace(stepper, statistics_every=1)
        for step in range(1, case.steps + 1):
            batch = samples(case, step)
            count = int((batch[1] != -100).sum())
            shares = rounds(case, batch, model.parallel.axes["data"].index)
            result = stepper.run(step, shares, targets=count, lr=case.lr)
            assert result.statistics is not None
            found.append(dict(result.statistics))
            norms.append(result.grad_norm)
    return found, norms


def observe_faults(rank: int, size: int, case: TrainingCase) -> dict[str, Found]:
    """Return the statistics with each planted fault."""
    found = {}
    for name, plant in FAULTS.items():
        with plant():
            found[name] = observe(rank, size, case)[0]
    return found


def differing(found: Found, expected: Found) -> set[str]:
    """Return the names whose statistics differ. The mean is compared on the scale of the values."""
    wrong = set()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, other in theirs.items():
            scale = 1e-11 * max(abs(other.max), abs(other.min))
            pairs = [(getattr(ours[name], n), getattr(other, n)) for n in ("mean", "max", "min")]
            same = all(abs(a - b) <= scale for a, b in pairs)
            if not (same and math.isclose(ours[name].l2, other.l2, rel_tol=1e-10)):
                wrong.add(name)
    return wrong


@pytest.mark.parametrize("case", [COLUMNS, GRID, STAGES, CUBE, ON_DISK], ids=lambda case: case.name)
def test_statistics_of_a_layout_equal_those_of_one_process(case):
    by_rank = [found for found, _ in run_world(case.layout.gpus, observe, case)]
    expected, _ = observe(0, 1, case.alone)
    assert differing(by_rank[0], expected) == set()
    assert all(found == by_rank[0] for found in by_rank), "all ranks have them"


def of(x: Tensor) -> Statistics:
    """Return the statistics of a tensor by torch's functions on all of it."""
    x = x.double().flatten()
    return Statistics(
        mean=float(x.mean()), max=float(x.max()), min=float(x.min()), l2=float(x.norm())
    )


def test_statistics_of_one_process_are_those_of_the_tensors():
    """Activations by the formulas of the model, weights before and after the step."""
    case = replace(COLUMNS.alone, steps=1)
    parallel = open_partition(case, 0)
    model = build(case, parallel)
    stepper = replace(make_stepper(case, model, parallel.axes["world"]), statistics_every=1)
    ids, targets = samples(case, 1)
    before = gathered(model, dict(model.named_parameters()), 1)
    expected = {name: of(x[(targets != -100).flatten()]) for name, x in forward(model[0], ids)}
    count = int((targets != -100).sum())
    result = stepper.run(1, [(ids, targets)], targets=count, lr=case.lr)
    after = gathered(model, dict(model.named_parameters()), 1)
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        expected[f"Grads/{name}"] = of(weight.grad)
        expected[f"Weights/{name}"] = of(after[name])
        expected[f"Step/{name}"] = of(after[name] - before[name])
    everything = {
        "Weights": list(after.values()),
        "Step": [after[name] - before[name] for name in after],
        "Grads": [p.grad for p in model.parameters() if p.grad is not None],
    }
    for group, tensors in everything.items():
        expected[f"{group}/global"] = of(torch.cat([x.detach().flatten() for x in tensors]))
    assert result.statistics is not None
    assert differing([dict(result.statistics)], [expected]) == set()


@torch.no_grad()
def forward(gpt: GPT, ids: Tensor) -> list[tuple[str, Tensor]]:
    """Return the activations [T, features] of a forward pass, step by step."""
    found, x = [], gpt.embed(ids)
    for name, block in gpt.h.items():
        assert isinstance(block, Block)
        place, before = f"GPT/Block{int(name) + 1}", x
        normal = F.layer_norm(x, x.shape[1:], block.ln_1.weight, block.ln_1.bias, 1e-5)
        found += [(f"{place}.ln1.preLN", x), (f"{place}.ln1.postLN", normal)]
        qkv = normal @ block.attn.c_attn.weight + block.attn.c_attn.bias
        q, k, v = rearrange(qkv, "t (h n d) -> n t h d", n=3, d=gpt.config.head_dim)
        found += [(f"{place}.CausalAttn.{n}", y) for n, y in zip("qkv", (q, k, v), strict=True)]
        attended = block.attn(normal, MicroBatch(length=ids.shape[1]))
        x = x + attended
        normal = F.layer_norm(x, x.shape[1:], block.ln_2.weight, block.ln_2.bias, 1e-5)
        found += [(f"{place}.ln2.preLN", x), (f"{place}.ln2.postLN", normal)]
        hidden = normal @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        active = F.gelu(hidden, approximate="tanh")
        found += [(f"{place}.MLP.pre_act", hidden), (f"{place}.MLP.post_act", active)]
        delta = active @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
        x = x + delta
        found += [(f"{place}.attn_delta", attended), (f"{place}.mlp_delta", delta)]
        found.append((f"{place}.output", x))
        assert torch.allclose(x, block(before, MicroBatch(length=ids.shape[1])))
    normal = gpt.ln_f(x)
    return [
        *found,
        ("GPT/lnf.preLN", x),
        ("GPT/lnf.postLN", normal),
        ("Logits", normal @ gpt.output.weight.t()),
    ]


def test_the_loss_scale_is_removed_from_gradients():
    """Without clipping, the global l2 is the gradient norm of the step."""
    (found,), (norm,) = observe(0, 1, HALF)
    assert found["Grads/global"].l2 == pytest.approx(norm, rel=1e-5)


def test_nothing_is_observed_in_steps_without_statistics():
    case = replace(COLUMNS.alone, steps=1)
    parallel = open_partition(case, 0)
    model = build(case, parallel)
    stepper = replace(make_stepper(case, model, parallel.axes["world"]), statistics_every=2)
    ids, targets = samples(case, 1)
    with patch.object(step_statistics, "moments", side_effect=AssertionError):
        result = stepper.run(1, [(ids, targets)], targets=83, lr=case.lr)
    assert result.statistics is None
    assert stepper.run(2, [(ids, targets)], targets=83, lr=case.lr).statistics is not None
    assert [module for module in model[0].modules() if module._forward_hooks] == []
    assert model[0].head.observers == []


def test_a_loss_scale_that_is_not_removed_is_detected():
    with patch.object(engine.training.step, "unscale_and_clip"):
        (found,), (norm,) = observe(0, 1, HALF)
    assert found["Grads/global"].l2 == pytest.approx(HALF.scale * norm, rel=1e-5)


FAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "a shard is counted twice": lambda: patch.object(
        step_statistics, "counted_parameters", ModelChunks.named_parameters
    ),
    "padding of parameters is counted": lambda: patch.object(
        StepStatistics, "_valid", lambda self, name, tensor: tensor
    ),
    "padding of features is counted": lambda: patch.object(
        _Observer, "inner_features", lambda self, name, x: self.observe(name, x[self.inner])
    ),
    "padding of tokens is counted": lambda: patch.object(activations, "IGNORED", 1 << 20),
    "padding of the vocabulary is counted": lambda: patch.object(
        _Observer, "logits", lambda self, x, ids: self.observe("Logits", x[ids != -100])
    ),
    "only the last micro-batch is counted": lambda: patch.object(
        StepStatistics,
        "add",
        lambda self, name, x: self._moments.update({name: moments(x)}),
    ),
    "shards are not merged": lambda: patch.object(
        step_statistics, "merge", lambda pieces: pieces[0]
    ),
}


@pytest.fixture(scope="module")
def faulty() -> dict[str, Found]:
    found: dict[str, Found] = run_world(2, observe_faults, COLUMNS)[0]
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_detected(faulty, fault):
    assert differing(faulty[fault], observe(0, 1, COLUMNS.alone)[0]) != set()


def test_statistics_of_compiled_blocks_equal_those_of_eager_ones():
    """A compiled block has no hooks inside: the steps with statistics run it eagerly, the others
    compiled."""
    case, found = replace(COLUMNS.alone, steps=2), []
    for compiled in (False, True):
        model = build(case, open_partition(case, 0))
        runs = CompileCounter()
        for block in model[0].h.values():
            if compiled:
                block.compile(backend=runs)
        stepper = replace(
            make_stepper(case, model, model.parallel.axes["world"]), statistics_every=2
        )
        for step in (1, 2):
            batch = samples(case, step)
            count = int((batch[1] != -100).sum())
            result = stepper.run(step, rounds(case, batch, 0), targets=count, lr=case.lr)
        assert result.statistics is not None
        found.append([dict(result.statistics)])
        assert (runs.op_count > 0) == compiled
    assert differing(found[1], found[0]) == set()
