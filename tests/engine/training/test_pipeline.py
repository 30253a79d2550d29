"""A pipeline trains the same model as one process: with every schedule, number of micro-batches,
mode and precision, and with data parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from engine.pipeline.schedule import SCHEDULES
from models.parallel.collectives import Traffic
from models.parallel.registry import modes
from tests.support.mode_sizes import ModeSize, full_mode_sizes
from tests.support.parity import TOLERANCE, Parity
from tests.support.training import (
    TrainingCase,
    assert_same,
    build,
    make_stepper,
    open_partition,
    rounds,
    samples,
    train_all,
)
from tests.support.worlds import run_world

SAMPLES = 16


def run(
    schedule: str = "1f1b", pipeline: int = 2, micro_batches: int = 2, **more: Any
) -> TrainingCase:
    """Return a case with one layer per virtual stage, in float64 unless ``more`` differs."""
    chunks = 2 if schedule == "interleaved" else 1
    settings = {"dtype": torch.float64, "samples": SAMPLES, "layers": pipeline * chunks, **more}
    return TrainingCase(
        schedule=schedule,
        pipeline=pipeline,
        chunks=chunks,
        micro_batches=micro_batches,
        **settings,
    )


def by_schedule() -> Iterator[TrainingCase]:
    """Yield every schedule with every legal number of micro-batches in float64, and with two in
    the other dtypes."""
    for pipeline, schedule, micro_batches in product((2, 4), SCHEDULES, (1, 2, 4, 8)):
        if schedule == "interleaved" and micro_batches % pipeline:
            continue
        yield run(schedule, pipeline, micro_batches)
        if pipeline == micro_batches:
            yield run(schedule, pipeline, micro_batches, dtype=torch.float32)
    for schedule, compute in product(SCHEDULES, (torch.bfloat16, torch.float16)):
        yield run(schedule, dtype=torch.float32, compute=compute)


def by_mode() -> Iterator[TrainingCase]:
    """Yield every mode on the smallest grid with all of its axes (up to 16 ranks), tied and
    untied."""
    for number, cut in enumerate([*full_mode_sizes(), ModeSize("2.5d", 2, 2)]):
        schedule = list(SCHEDULES)[number % len(SCHEDULES)]
        yield run(schedule, **cut._asdict())
        yield run("zero_bubble", **cut._asdict(), keep_gathers=True, tied=False)


def by_option() -> Iterator[TrainingCase]:
    """Yield combinations with other options: accumulation, activation checkpointing, clipping,
    uneven stages, gradients that are reduced over data while the pipeline drains."""
    yield run("interleaved", accumulation=2, checkpoint=True)
    yield run("zero_bubble", accumulation=2, checkpoint=True, tied=False)
    yield run("zero_bubble", checkpoint="selective", clip=None)
    yield run("1f1b", checkpoint="selective", layers=5, tied=False)
    yield run("gpipe", layers=3, clip=0.01)
    yield run("interleaved", layers=7)
    for schedule in SCHEDULES:
        yield run(schedule, data=2, accumulation=2)
    for schedule in ("1f1b", "zero_bubble"):
        yield run(schedule, data=2, mode="1d", tensor=2, micro_batches=4)  # the README's eight
    yield run("1f1b", data=2, mode="1d", tensor=2, dtype=torch.float32, compute=torch.float16)


RUNS = list(dict.fromkeys([*by_schedule(), *by_mode(), *by_option()]))
PARITY = Parity(RUNS)


@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
def test_a_pipeline_trains_the_same_model(run: TrainingCase) -> None:
    PARITY.check(run)


DROPPING = [
    ("gpipe", {}, {"checkpoint": True}),
    ("zero_bubble", {"data": 2}, {"zero": 2}),
    ("1f1b", {"mode": "1d", "tensor": 2}, {"checkpoint": "selective"}),
]


@pytest.mark.parametrize(("schedule", "where", "how"), DROPPING)
def test_dropout_masks_are_equal_in_all_schedules(
    schedule: str, where: dict[str, Any], how: dict[str, Any]
) -> None:
    """The mask depends on the number of the micro-batch, not on the rank."""
    whole = run(pipeline=1, layers=2, dropout=0.1, **where)
    cut = run(schedule, dropout=0.1, **where, **how)
    (expected,) = run_world(whole.layout.gpus, train_all, [whole])[0]
    (found,) = run_world(cut.layout.gpus, train_all, [cut])[0]
    assert_same(found, expected, TOLERANCE[torch.float64])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stages_send_sharded_activations(schedule: str) -> None:
    """Every virtual stage but the last sends T / 2 x C of each micro-batch in bf16, and every one
    but the first sends as much back."""
    cut = run(schedule, mode="1d", tensor=2, dtype=torch.float32, compute=torch.bfloat16)
    tokens = cut.samples // cut.micro_batches * cut.length
    once = tokens // cut.tensor * cut.config.n_embd * torch.bfloat16.itemsize
    for sent in run_world(4, messages, cut):
        assert sent == (2 * cut.chunks - 1) * cut.micro_batches * once


def messages(rank: int, size: int, run: TrainingCase) -> int:
    """Return the bytes that a rank sends to other stages in a step."""
    traffic = Traffic()
    part = open_partition(run, rank, traffic)
    stepper = make_stepper(run, build(run, part), part.axes["world"])
    traffic.reset()
    stepper.run(1, rounds(run, samples(run, 1), 0), targets=1, lr=0.0)
    return traffic.bytes["pipeline", "send"]


def test_cases_cover_all_modes() -> None:
    assert {run.mode for run in RUNS} == modes().keys()
