"""Parity: any legal layout trains the same model as a single process.

Modes are read from the registry, so a new mode is tested without a change here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest
import torch

from tests.support.all_pairs import pairs
from tests.support.mode_sizes import ModeSize, full_mode_sizes, mode_sizes
from tests.support.parity import Parity
from tests.support.training import TrainingCase

LARGEST = 8


def is_common(cut: ModeSize) -> bool:
    """Return whether a mode size is tested with every pair of options; others get one case."""
    return cut.tensor in (1, 2, 3, 4, 8) and cut.depth in (1, 2)


def fits(cut: ModeSize, data: int, *_: object) -> bool:
    return cut.tensor * data <= LARGEST


def many_runs() -> Iterator[TrainingCase]:
    """Yield every pair of options at common sizes in float64, and a few in float32 and bf16."""
    every = list(mode_sizes(LARGEST))
    common = [cut for cut in every if is_common(cut)]
    both = (False, True)
    rows = pairs(common, (1, 2), (1, 2), both, both, both, legal=fits)
    rows += [(cut, 1, 2, True, False, False) for cut in every if not is_common(cut)]
    for cut, data, accumulation, tied, checkpoint, keep in rows:
        yield TrainingCase(
            **cut._asdict(),
            data=data,
            accumulation=accumulation,
            tied=tied,
            checkpoint=checkpoint,
            keep_gathers=keep,
            dtype=torch.float64,
        )
    yield from sharded_samples()
    smallest: dict[str, ModeSize] = {}
    for cut in common:
        if cut.tensor > 1:
            smallest.setdefault(cut.mode, cut)
    # An MLP width that no mode divides, the head of a GPU, dropout
    for cut in full_mode_sizes():
        yield TrainingCase(
            **cut._asdict(),
            inner=27,
            gpu_head=True,
            loss_chunk=None,
            dropout=0.2,
            dtype=torch.float64,
        )
    for cut in smallest.values():
        yield TrainingCase(**cut._asdict())
        yield TrainingCase(**cut._asdict(), compute=torch.bfloat16)
        yield TrainingCase(
            **cut._asdict(),
            tied=cut.mode != "3d",
            init_residual="mlp",
            init_positions="zero",
            scale_embedding=True,
            dtype=torch.float64,
        )
    yield TrainingCase(pipeline=2, scale_embedding=True, dtype=torch.float64)
    # Samples are numbered across ranks, rounds and micro-batches, for dropout
    split = TrainingCase(data=2, accumulation=3, micro_batches=2, dropout=0.3, dtype=torch.float64)
    yield split
    yield replace(split, pipeline=2, schedule="zero_bubble", checkpoint=True)


def sharded_samples() -> Iterator[TrainingCase]:
    """Yield micro-batches whose samples no rank has whole, of lengths that nothing divides."""
    shapes = itertools.cycle([(1, 11), (3, 7), (5, 13), (2, 5)])
    choices: list[bool | Literal["selective"]] = ["selective", False, True]
    ways = itertools.cycle(choices)
    for cut, (samples, length), way in zip(full_mode_sizes() * 2, shapes, ways, strict=False):
        yield TrainingCase(
            **cut._asdict(),
            samples=samples,
            length=length,
            ignored=2,
            checkpoint=way,
            keep_gathers=samples == 3,
            context="ring" if samples in (2, 3) else "gather",
            dropout=0.3 if samples in (1, 3) else 0.0,
            dtype=torch.float64,
            steps=2,
        )


RUNS = list(many_runs())
PARITY = Parity(RUNS)


def is_slow(run: TrainingCase) -> bool:
    """Return whether a case has a world of its own that shows no other fault: three ranks divide no
    width either."""
    return run.layout.gpus in (5, 6, 7)


@pytest.mark.parametrize(
    "run",
    [pytest.param(run, id=run.name, marks=[pytest.mark.slow] * is_slow(run)) for run in RUNS],
)
def test_layout_trains_the_same_model_as_one_process(run: TrainingCase) -> None:
    PARITY.check(run)
