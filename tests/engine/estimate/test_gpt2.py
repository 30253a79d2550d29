"""The estimate of GPT-2 small at its full size, compared with fake tensors. In small sizes
test_measured.py compares every setting."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.estimate.estimate import estimate
from engine.optim.registry import build_optimizer
from engine.plan import Plan
from engine.training.build import build_model, named_parameters, parallel_context
from engine.training.gradients import GradientReducer
from engine.training.pipeline import Pipeline
from models.chunks import ModelChunks
from models.parallel.context import ParallelContext
from tests.engine.estimate.plans import GPT2, plan
from tests.support.live_bytes import Alive, held

WITHIN = 0.03
CPU = torch.device("cpu")


def most_alive(plan: Plan) -> int:
    """Return the bytes at the peak of the second step's passes."""
    settings, mode = plan.settings, plan.layout.mode
    axes = ParallelContext.single_device(CPU, dtype=torch.float32, compute=torch.float32).axes
    model = build_model(settings, parallel_context(settings, mode, axes, CPU))
    optimizer = build_optimizer(settings.optimizer, named_parameters(model))
    sums, pipeline = GradientReducer(model), Pipeline(model, axes["pipeline"], settings.schedule)

    def step() -> None:
        sums.zero()
        ids = torch.zeros(plan.micro_batch, settings.seq_len, dtype=torch.int64)
        batches = [(ids, ids)] * settings.num_micro_batches
        pipeline.train(batches, [0] * len(batches), 1.0, sums)
        optimizer.step()

    step()
    alive = Alive(*held(list(model.parameters()), optimizer))
    with alive:
        step()
    return alive.most


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        pytest.param({}, {}, id="float32", marks=pytest.mark.slow),
        pytest.param(
            {"checkpoint": True, "tie_embeddings": False},
            {"precision": "bf16"},
            id="checkpoint-bf16",
        ),
        pytest.param(
            {"checkpoint": "selective"},
            {"precision": "bf16", "num_micro_batches": 2},
            id="selective-bf16",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_estimate_of_gpt2_small_equals_its_allocations(
    model: dict[str, Any], settings: dict[str, Any]
) -> None:
    """The backward pass scales the loss, as it always does on a GPU."""
    gpt2 = plan(model=GPT2 | model, loss_chunk=333, **settings)
    without_values = patch.object(torch.Tensor, "item", lambda self: 2.0)
    with FakeTensorMode(), patch.object(ModelChunks, "initialise"), without_values:
        most = most_alive(gpt2)
    assert estimate(gpt2).fullest.memory.total == pytest.approx(most, rel=WITHIN)
