"""The dynamic loss scale: it equals torch's GradScaler over any sequence of overflows, has bounds,
and an overflow on one rank skips the step on all."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from engine.config.sections.loss import LossScaleSettings
from engine.optim.optimizer import ResidentOptimizer
from engine.training.gradients import GradientReducer
from engine.training.loss_scale import LossScale
from engine.training.pipeline import Pipeline
from engine.training.step import NonFiniteError, Stepper, StepResult
from models.chunks import ModelChunks
from tests.support.jobs import TINY, Job
from tests.support.jobs import run as run_job
from tests.support.training import (
    TrainingCase,
    build,
    make_stepper,
    open_partition,
    rounds,
    samples,
    train_all,
)
from tests.support.worlds import run_world


def scale(**settings: Any) -> LossScale:
    return LossScale(LossScaleSettings(**settings))


class Torchs:
    """torch's GradScaler on one parameter."""

    def __init__(self, settings: LossScaleSettings) -> None:
        self.scaler = torch.amp.GradScaler(
            "cpu",
            init_scale=settings.initial,
            growth_factor=settings.growth_factor,
            backoff_factor=settings.backoff_factor,
            growth_interval=settings.growth_interval,
        )
        self.parameter = torch.zeros(1, requires_grad=True)
        self.optimizer = torch.optim.SGD([self.parameter], lr=1.0)
        self.scaler.scale(torch.zeros(1))

    def update(self, overflow: bool) -> bool:
        """Run a step, and return whether the optimizer ran."""
        before = self.parameter.item()
        self.parameter.grad = torch.tensor([torch.inf if overflow else self.scaler.get_scale()])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.parameter.item() != before


@pytest.mark.parametrize("seed", range(5))
def test_the_scale_equals_that_of_torchs_grad_scaler(seed: int) -> None:
    draw = random.Random(seed)
    settings = LossScaleSettings(
        initial=2.0**10,
        growth_interval=draw.randint(1, 5),
        growth_factor=2.0,
        backoff_factor=0.25,
        min=2.0**-60,
        max=2.0**120,
    )
    ours, theirs, skipped = LossScale(settings), Torchs(settings), 0
    for _ in range(60):
        overflow = draw.random() < 0.3
        ours.update(overflow)
        assert theirs.update(overflow) is not overflow
        skipped += overflow
        assert ours.scale == theirs.scaler.get_scale()
        assert ours.skipped == skipped


def test_the_default_scale_equals_that_of_common_frameworks() -> None:
    ours = scale()
    assert ours.scale == 2.0**16
    for _ in range(ours.settings.growth_interval):
        ours.update(overflow=False)
    assert ours.scale == 2.0**17
    ours.update(overflow=True)
    assert ours.scale == 2.0**16


def test_the_scale_stays_within_its_bounds() -> None:
    ours = scale(initial=4.0, min=2.0, max=8.0, growth_interval=1)
    for overflow, expected in ((False, 8.0), (False, 8.0), (True, 4.0), (True, 2.0)):
        assert not ours.exhausted
        ours.update(overflow)
        assert ours.scale == expected
    assert ours.exhausted


def test_hysteresis_delays_the_reduction() -> None:
    ours = scale(initial=16.0, hysteresis=2)
    for overflow, expected in ((True, 16.0), (False, 16.0), (True, 16.0), (True, 8.0), (True, 8.0)):
        ours.update(overflow)
        assert ours.scale == expected
    assert ours.skipped == 4


# In a world

FP16 = TrainingCase(samples=16, compute=torch.float16)
PIPELINE = TrainingCase(samples=16, compute=torch.float16, pipeline=2, micro_batches=2)


@dataclass(frozen=True, kw_only=True)
class ScaleHistory:
    """The steps of a rank: results, scale after each, whether weights and states were unchanged in
    the skipped step and only there, and the weights at the end."""

    outcomes: list[StepResult]
    scales: list[float]
    untouched: bool
    weights: list[Tensor]


def overflow(rank: int, size: int, steps: list[int], bad: int | None) -> ScaleHistory:
    """Run ``steps``. In step ``bad`` a gradient of rank 1 alone is infinite."""
    part = open_partition(PIPELINE, rank)
    model = build(PIPELINE, part)
    stepper = make_stepper(PIPELINE, model, part.axes["world"])
    assert stepper.loss_scale is not None
    outcomes, scales, untouched = [], [], True
    for step in steps:
        before = state(model, stepper)
        if bad is None and step == steps[-1]:
            stepper.loss_scale.scale /= 2  # as an overflow would have left it
        with patch.object(Pipeline, "train", faulty if step == bad and rank == 1 else HEALTHY):
            batch = samples(PIPELINE, step)
            outcomes.append(
                stepper.run(
                    step,
                    rounds(PIPELINE, batch, 0),
                    targets=int((batch[1] != -100).sum()),
                    lr=PIPELINE.lr,
                )
            )
        same = all(map(torch.equal, before, state(model, stepper)))
        untouched = untouched and same is (step == bad)
        scales.append(stepper.loss_scale.scale)
    weights = [parameter.detach() for parameter in model.parameters()]
    return ScaleHistory(outcomes=outcomes, scales=scales, untouched=untouched, weights=weights)


HEALTHY = Pipeline.train


def faulty(self: Pipeline, batches: Any, seeds: Any, scale: float, sums: GradientReducer) -> Tensor:
    loss = HEALTHY(self, batches, seeds, scale, sums)
    gradient = next(self.model.parameters()).grad
    assert gradient is not None
    gradient.view(-1)[0] = torch.inf
    return loss


def state(model: ModelChunks, stepper: Stepper) -> list[Tensor]:
    """Return copies of the weights and the optimizer states."""
    optimizer = stepper.optimizer
    assert isinstance(optimizer, ResidentOptimizer)
    kept = [tensor for states in optimizer.inner.state.values() for tensor in states.values()]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *kept)]


@cache
def courses(bad: int | None) -> list[ScaleHistory]:
    return run_world(2, overflow, [1, 2, 3] if bad else [1, 3], bad)


def test_an_overflow_on_one_rank_skips_the_step_on_all() -> None:
    for course in courses(2):
        assert [outcome.skipped for outcome in course.outcomes] == [False, True, False]
        assert course.scales == [PIPELINE.scale, PIPELINE.scale / 2, PIPELINE.scale / 2]
        assert course.untouched, "weights and states change in the other steps, and only there"
        assert not course.outcomes[1].finite


def test_training_after_a_skipped_step_equals_training_without_the_step() -> None:
    for course, without in zip(courses(2), courses(None), strict=True):
        assert all(map(torch.equal, course.weights, without.weights))


LARGE = [
    TrainingCase(samples=16, compute=torch.float16, scale=2.0**28, steps=12, **how)
    for how in ({}, {"pipeline": 2}, {"mode": "1d", "tensor": 2}, {"data": 2, "zero": 2})
]


def test_a_scale_that_is_too_large_shrinks_until_steps_succeed() -> None:
    """Overflows happen in different operations in each layout: counts may differ by one."""
    alone, *others = LARGE
    (reference,) = run_world(1, train_all, [alone.alone])[0]
    assert 2 <= reference.skipped <= 10
    for found in run_world(2, train_all, others)[0]:
        assert abs(found.skipped - reference.skipped) <= 1
        assert all(map(math.isfinite, found.losses)), "the loss itself is summed in float32"
        assert math.isfinite(found.norms[-1])
        assert not math.isfinite(found.norms[0])


def test_an_overflow_at_the_minimum_scale_is_an_error() -> None:
    part = open_partition(FP16, 0)
    model = build(FP16, part)
    stepper = make_stepper(FP16, model, part.axes["world"])
    stepper = Stepper(**{**vars(stepper), "loss_scale": scale(initial=2.0, min=1.0)})
    ids, targets = samples(FP16, 1)
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    assert stepper.run(1, [(ids, targets)], targets=1, lr=0.1).skipped
    with pytest.raises(NonFiniteError, match="not finite on rank 0"):
        stepper.run(2, [(ids, targets)], targets=1, lr=0.1)


def test_skipped_steps_are_counted_and_logged(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    overrides = ("precision=fp16", "loss_scale.initial=1e9", "log.dir=run", "checkpoint.every=None")
    (ended,) = run_job(Job(folder=tmp_path, overrides=overrides))
    assert ended.error == "", ended.err
    text = (tmp_path / "run" / "log.jsonl").read_text()
    first, *_, last = [json.loads(line) for line in text.splitlines()]
    assert (first["skipped"], first["loss_scale"], first["grad_norm"]) == (1, 5e8, None)
    assert last["skipped"] == 4
    assert last["loss_scale"] == 1e9 / 2**4
    assert "step 1: skipped: fp16 overflow; loss scale 5e+08\n" in ended.out
