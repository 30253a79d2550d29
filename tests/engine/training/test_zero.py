"""ZeRO trains the same model as one process: every stage in every mode, with pipelines,
accumulation, activation checkpointing and offloading."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from engine.pipeline.schedule import SCHEDULES
from models.parallel.registry import modes
from tests.support.mode_sizes import full_mode_sizes
from tests.support.parity import Parity
from tests.support.training import TrainingCase

STAGES = (1, 2, 3)


def run(zero: int, **more: Any) -> TrainingCase:
    """Return a case in float64, unless ``more`` differs."""
    return TrainingCase(
        **{"zero": zero, "data": 2, "dtype": torch.float64, "accumulation": 2, **more}
    )


def by_mode() -> Iterator[TrainingCase]:
    """Yield every stage in every mode on the smallest grid with all of its axes, up to 16 ranks,
    with tied tables and untied ones; in 2.5d the first stages on grids of one."""
    for cut, zero in product(full_mode_sizes(), STAGES):
        if cut.mode == "2.5d" and zero < 3:
            continue
        large = {"accumulation": 1} if cut.tensor > 2 else {}
        yield run(zero, **cut._asdict(), tied=zero != 2, **large)
    for zero in STAGES:  # depth two, each a grid of one: weights are summed over depth
        yield run(zero, mode="2.5d", tensor=2, depth=2, tied=False)
        yield run(zero, dtype=torch.float32)
        yield run(zero, mode="1d", tensor=2, data=1, dtype=torch.float32)


def over_depth() -> Iterator[TrainingCase]:
    """Yield every stage sharded over 2.5d's depth: grids of one and of four, with data ranks and
    without; pipelines; offloading; a depth of three, which divides no width."""
    pair = {"mode": "2.5d", "tensor": 2, "depth": 2, "zero_depth": True}
    for zero in STAGES:
        yield run(zero, **pair, data=1, tied=zero != 2)
        yield run(zero, **pair, tied=zero == 2)
        yield run(zero, **{**pair, "tensor": 8}, data=1, accumulation=1)
        yield run(zero, **{**pair, "tensor": 3, "depth": 3}, data=1, clip=None)
        yield run(zero, **pair, data=1, pipeline=2, micro_batches=2, accumulation=1)
        yield run(zero, **pair, data=1, offload=True, clip=0.01)
    yield run(1, **pair, data=3, accumulation=1, tied=False)
    yield run(2, **pair, dtype=torch.float32, compute=torch.float16)
    yield run(3, **pair, schedule="zero_bubble", pipeline=2, micro_batches=2, accumulation=1)
    tokens = {"mode": "sequence", "tensor": 2, "zero_depth": True}
    yield run(1, **tokens, samples=4, length=13, ignored=2)
    yield run(
        2,
        **tokens,
        data=1,
        samples=2,
        length=13,
        ignored=2,
        pipeline=2,
        micro_batches=2,
        accumulation=1,
    )
    yield run(3, **{**tokens, "tensor": 3}, data=1, samples=2, length=7, ignored=2, accumulation=1)


def by_option() -> Iterator[TrainingCase]:
    """Yield cases of the options that ZeRO may be combined with: three ranks, over which no width
    divides; a single rank; offloading; activation checkpointing; saved gathers; clipping;
    pipelines; half precision."""
    yield run(3, offload=True, mode="2.5d", tensor=2, depth=2)
    yield run(2, mode="1d", tensor=2, pipeline=2, samples=16, micro_batches=2)
    for zero in STAGES:
        yield run(zero, data=3)
        yield run(zero, data=3, mode="1d", tensor=2, accumulation=1)
        yield run(zero, data=1, offload=True)
        yield run(zero, offload=True, checkpoint=True)
        yield run(zero, checkpoint="selective", clip=None)
        yield run(zero, keep_gathers=True, clip=0.01)
        for schedule in SCHEDULES if zero > 1 else ("1f1b",):
            chunks = 2 if schedule == "interleaved" else 1
            pipeline = {"pipeline": 2, "chunks": chunks, "layers": 2 * chunks, "samples": 16}
            yield run(zero, schedule=schedule, micro_batches=2, **pipeline)
        for compute in (torch.bfloat16, torch.float16):
            yield run(zero, dtype=torch.float32, compute=compute)
        yield run(zero, dtype=torch.float32, compute=torch.float16, pipeline=2)


RUNS = list(dict.fromkeys([*by_mode(), *over_depth(), *by_option()]))
PARITY = Parity(RUNS)


@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
def test_zero_trains_the_same_model(run: TrainingCase) -> None:
    PARITY.check(run)


def test_cases_cover_all_modes_in_all_zero_stages() -> None:
    assert {(run.mode, run.zero) for run in RUNS} == set(product(modes(), STAGES))
