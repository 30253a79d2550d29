"""Mutation tests of the parity comparison: it fails for each fault planted in the model, its
sharding, its gradients, pipelines or ZeRO."""

from __future__ import annotations

from functools import cache

import pytest

from tests.support import planted_faults, planted_pipeline_faults
from tests.support.parity import TOLERANCE
from tests.support.planted_faults import FAULTS
from tests.support.training import TrainingCase, TrainingResult, assert_same, train, train_all
from tests.support.worlds import run_world

FAULTY = 1e-5  # at least: the parity tests' tolerance in float32, of a run in float64
RUNS = [*planted_faults.RUNS, *planted_pipeline_faults.RUNS]


def train_faulty(
    rank: int, size: int, runs: list[TrainingCase], names: list[str]
) -> list[TrainingResult]:
    """Train the runs without and then with faults; rank 0 returns the results."""
    results = train_all(rank, size, runs)
    for name in names:
        with FAULTS[name].plant():
            results.append(train(rank, size, FAULTS[name].run))
    return results if rank == 0 else []


@cache
def trained(world: int) -> dict[TrainingCase | str, TrainingResult]:
    """Train all runs of a world size in one world.

    Results are by run for those without a fault, by the name of the fault for the others.
    """
    runs = [run for run in RUNS if run.layout.gpus == world]
    if world == 1:
        runs = [run.alone for run in RUNS]
    names = [name for name, fault in FAULTS.items() if fault.run.layout.gpus == world]
    results = run_world(world, train_faulty, runs, names)
    return dict(zip([*runs, *names], results[0], strict=True))


@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
def test_comparison_passes_without_a_fault(run: TrainingCase) -> None:
    tolerance = TOLERANCE[run.compute or run.dtype]
    assert_same(trained(run.layout.gpus)[run], trained(1)[run.alone], tolerance)


@pytest.mark.parametrize("name", FAULTS)
def test_comparison_fails_with_a_planted_fault(name: str) -> None:
    run = FAULTS[name].run
    tolerance = max(FAULTY, TOLERANCE[run.compute or run.dtype])
    with pytest.raises(AssertionError, match="relative differences beyond"):
        assert_same(trained(run.layout.gpus)[name], trained(1)[run.alone], tolerance)
