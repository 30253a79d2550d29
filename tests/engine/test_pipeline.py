"""A pipeline trains the model that one process trains: every schedule, number of micro-batches and
mode, with data parallelism, and in every precision."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch

from engine.schedule import SCHEDULES
from models.parallel.registry import modes
from tests.support.cuts import Cut, full_cuts
from tests.support.parity import Parity
from tests.support.training import Run

pytestmark = pytest.mark.timeout(400)  # the first test of a world waits for all of its runs

SAMPLES = 16
FEW_STEPS = 3  # in worlds of 16 ranks


def run(schedule: str = "1f1b", pipeline: int = 2, micro_batches: int = 2, **more: object) -> Run:
    """In float64 where no other type is asked for; every virtual stage has one layer."""
    chunks = 2 if schedule == "interleaved" else 1
    settings = {"dtype": torch.float64, "samples": SAMPLES, "layers": pipeline * chunks, **more}
    return Run(
        schedule=schedule,
        pipeline=pipeline,
        chunks=chunks,
        micro_batches=micro_batches,
        **settings,  # type: ignore[arg-type]
    )


def by_schedule() -> Iterator[Run]:
    """Every schedule with every number of micro-batches that it takes, in float64; in the other
    types with two."""
    for pipeline, schedule, micro_batches in product((2, 4), SCHEDULES, (1, 2, 4, 8)):
        if schedule == "interleaved" and micro_batches % pipeline:
            continue
        yield run(schedule, pipeline, micro_batches)
        if pipeline == micro_batches:
            yield run(schedule, pipeline, micro_batches, dtype=torch.float32)
    for schedule, compute in product(SCHEDULES, (torch.bfloat16, torch.float16)):
        yield run(schedule, dtype=torch.float32, compute=compute)


def by_mode() -> Iterator[Run]:
    """Every mode, on the smallest grid that has all of its axes: 16 ranks for some."""
    for number, cut in enumerate([*full_cuts(), Cut("2.5d", 2, 2), Cut("2.5d", 4, 1)]):
        steps = FEW_STEPS if cut.tensor == 8 else 5
        schedule = list(SCHEDULES)[number % len(SCHEDULES)]
        yield run(schedule, **cut._asdict(), steps=steps)
        yield run("zero_bubble", **cut._asdict(), steps=steps, keep_gathers=True, tied=False)


def by_option() -> Iterator[Run]:
    """What goes with micro-batches: rounds, checkpoints, clipping, uneven stages, gradients that
    are summed over data while the pipeline drains."""
    yield run("interleaved", accumulation=2, checkpoint=True)
    yield run("zero_bubble", accumulation=2, checkpoint=True, tied=False)
    yield run("zero_bubble", checkpoint="selective", clip=None)
    yield run("1f1b", checkpoint="selective", layers=5, tied=False)
    yield run("gpipe", layers=3, clip=0.01)
    yield run("interleaved", layers=7)
    for schedule in SCHEDULES:
        yield run(schedule, data=2, accumulation=2)
        yield run(schedule, data=2, mode="1d", tensor=2, micro_batches=4)  # the README's eight
    yield run("1f1b", data=2, mode="1d", tensor=2, micro_batches=4, dtype=torch.float32)
    yield run("1f1b", data=2, mode="1d", tensor=2, dtype=torch.float32, compute=torch.float16)


RUNS = list(dict.fromkeys([*by_schedule(), *by_mode(), *by_option()]))
PARITY = Parity(RUNS)


@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
def test_a_pipeline_trains_the_same_model(run: Run) -> None:
    PARITY.check(run)


def test_every_mode_is_there() -> None:
    assert {run.mode for run in RUNS} == modes().keys()
