"""validate --here: the plan that train would run on this machine, and its problems."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.estimate.estimate import estimate
from launch.machine import Machine
from launch.validate.inspection import Inspection
from launch.validate.machine_checks import inspect_on
from tests.launch.validate.support import CONFIG, GIB, plan, request, write

CUT = CONFIG + "TENSOR_PARALLEL = 2\nMODE = '1d'\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, CUT)


def machine(gpus: int, gpu_memory: int | None = 80 * GIB) -> Machine:
    return Machine(gpus=gpus, memory=64 * GIB, gpu_memory=gpu_memory if gpus else None)


def look(
    found: Machine, config: Path, gpus: int | None = None, memory: int | None = None
) -> Inspection:
    return inspect_on(found, request(config, gpus=gpus), memory, enough=1)


def ranks(found: Inspection) -> int:
    assert found.case is not None
    return found.case.plan.layout.gpus


@pytest.mark.parametrize(
    ("gpus", "asked", "started"), [(0, None, 2), (2, None, 2), (5, None, 4), (8, 2, 2), (0, 6, 6)]
)
def test_number_of_ranks_equals_that_of_train(config, gpus, asked, started):
    found = look(machine(gpus), config, asked)
    assert found.problems == ()
    assert ranks(found) == started


def test_too_few_gpus_are_reported(config):
    found = look(machine(1), config)
    assert found.problems == (
        f"{config}: TENSOR_PARALLEL x PIPELINE needs 2 GPUs, but this machine has 1; "
        "--gpus 2 lets ranks share them, which is slow",
    )
    assert ranks(found) == 2


def test_ranks_on_a_gpu_share_its_memory(config):
    taken = estimate(plan(config)).fullest.memory.total
    for gpus, asked, memory, fits in (
        (2, None, taken, True),
        (2, None, taken - 1, False),
        (2, 4, 2 * taken, True),
        (2, 4, 2 * taken - 2, False),
    ):
        found = look(machine(gpus, memory), config, asked)
        assert found.case is not None
        assert found.case.fits is fits
        assert len(found.problems) == (0 if fits else 1)
    assert look(machine(2, taken - 1), config, memory=taken).problems == ()


def test_estimate_on_cpus_has_no_gpu_memory(config):
    found = look(machine(0), config)
    assert found.case is not None
    assert found.case.gpu_memory is None
    assert found.case.checks[0].finding.startswith("none: 2 ranks on ")


def test_shared_gpus_give_a_note(config):
    found = look(machine(1), config, 2)
    assert found.case is not None
    assert found.case.plan.notes[-1] == "2 ranks share 1 GPU, which is slow"


def test_problems_of_machine_and_config_are_listed_together(config):
    config.write_text(CUT + "log = dict(dir='/proc/1/run')\n")
    taken = estimate(plan(config)).fullest.memory.total
    found = look(machine(2, taken - 1), config)
    assert len(found.problems) == 2
    assert "needs" in found.problems[0]
    assert "log.dir='/proc/1/run'" in found.problems[1]


def test_invalid_config_skips_the_machine_checks(config):
    config.write_text(CUT + "foo = 1\nbar = 2\n")
    found = look(machine(1), config)
    assert found.case is None
    assert len(found.problems) == 2
