"""Faults planted in the model, its cut or its gradients each make the parity comparison fail."""

from __future__ import annotations

from functools import cache

import pytest

from tests.support.faults import FAULTS, RUNS
from tests.support.training import Run, Trained, assert_same, train, train_all
from tests.support.worlds import run_world

pytestmark = pytest.mark.timeout(400)  # the first test of a world waits for all of its runs

HEALTHY, FAULTY = 1e-13, 1e-5  # the parity tests' tolerances in float64 and in float32


def train_faulty(rank: int, size: int, runs: list[Run], names: list[str]) -> list[Trained]:
    """Healthy runs, then faulty ones; rank 0 tells."""
    results = train_all(rank, size, runs)
    for name in names:
        with FAULTS[name].plant():
            results.append(train(rank, size, FAULTS[name].run))
    return results if rank == 0 else []


@cache
def trained(world: int) -> dict[Run | str, Trained]:
    """All runs of one world size, in one world: healthy ones by run, faulty ones by name."""
    runs = [run for run in RUNS if run.layout.gpus == world]
    if world == 1:
        runs = [run.alone for run in RUNS]
    names = [name for name, fault in FAULTS.items() if fault.run.layout.gpus == world]
    results = run_world(world, train_faulty, runs, names, timeout=360.0)
    return dict(zip([*runs, *names], results[0], strict=True))


@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
def test_without_a_fault_the_comparison_passes(run: Run) -> None:
    assert_same(trained(run.layout.gpus)[run], trained(1)[run.alone], HEALTHY)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name: str) -> None:
    run = FAULTS[name].run
    with pytest.raises(AssertionError, match="relative differences beyond"):
        assert_same(trained(run.layout.gpus)[name], trained(1)[run.alone], FAULTY)
