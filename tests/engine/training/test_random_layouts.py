"""Random layouts train the same model as one process."""

from __future__ import annotations

import pytest

from models.parallel.registry import modes
from tests.support.parity import Parity
from tests.support.random_layouts import draw
from tests.support.training import TrainingCase

FEW, MANY = 30, 500
RUNS = [draw(number) for number in range(FEW)]
SLOW_RUNS = [draw(number) for number in range(FEW, FEW + MANY)]
PARITY = Parity(RUNS)
SLOW_PARITY = Parity(SLOW_RUNS, timeout=3600.0)

# All runs of a world size are trained by the first test of that size.


@pytest.mark.parametrize("number", range(FEW), ids=[run.name for run in RUNS])
def test_a_random_layout_trains_the_same_model(number: int) -> None:
    PARITY.check(RUNS[number])


@pytest.mark.slow
@pytest.mark.timeout(4000)
@pytest.mark.parametrize("number", range(MANY), ids=[run.name for run in SLOW_RUNS])
def test_many_random_layouts_train_the_same_model(number: int) -> None:
    SLOW_PARITY.check(SLOW_RUNS[number])


def shares_samples(run: TrainingCase) -> bool:
    """Return whether several ranks hold a sample together."""
    samples = run.samples // (run.data * run.accumulation * run.micro_batches)
    return not run.layout.row_order(samples, run.length).is_whole


def test_random_layouts_cover_all_modes_and_zero_stages() -> None:
    assert {run.mode for run in RUNS} == modes().keys()
    assert {run.zero for run in RUNS} == {0, 1, 2, 3}
    assert any(run.pipeline > 1 and run.data > 1 and run.tensor > 1 for run in RUNS)
    assert {run.context for run in RUNS if shares_samples(run)} == {"gather", "ring"}
