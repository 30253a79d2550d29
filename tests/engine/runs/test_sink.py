"""Sinks are found by their files, and one that fails does not end the run."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from unittest.mock import patch

import pytest

from engine.plan import make_plan
from engine.runs import sink
from engine.runs.folder import RunFolder
from engine.runs.metrics import curves
from engine.runs.sink import OpenSinks, SinkRun, enabled_sinks, missing_packages
from engine.training.tensor_statistics import Statistics
from tests.support.jobs import TINY
from tests.support.metrics import row


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path / "tiny.py"


def test_a_new_file_in_sinks_registers_a_sink(config, tmp_path, monkeypatch):
    """The sink of the file `every.py` is enabled by log.every."""
    package = tmp_path / "more_sinks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "every.py").write_text(
        "PACKAGE = 'no_such_package'\n"
        "def open_sink(run):\n"
        "    return open_file(run.folder.path / 'losses')\n"
        "class open_file:\n"
        "    view = ('losses', 'cat losses')\n"
        "    def __init__(self, path): self.file = path.open('w')\n"
        "    def step(self, row): print(row.step, row.loss, file=self.file)\n"
        "    def close(self): self.file.close()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sink, "SINKS", "more_sinks")
    plan = make_plan(config, gpus=1, overrides=("log.every=5",), environ={})
    assert enabled_sinks(plan.settings) == ["every"]
    (line,) = missing_packages(plan)
    assert line.endswith(
        "log.every=5 needs the package no_such_package, which is not installed; "
        "pip install no_such_package"
    )
    run = SinkRun(folder=RunFolder(tmp_path), settings=plan.settings)
    sinks = OpenSinks.open(run, warn=pytest.fail)
    sinks.step(row(1))
    sinks.step(row(2))
    assert sinks.views == [("losses", "cat losses")]
    sinks.close()
    assert (tmp_path / "losses").read_text() == "1 3.0\n2 1.5\n"


def test_a_sink_that_fails_is_reported_once_and_left_out(config, tmp_path):
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
    full = OSError(errno.ENOSPC, "No space left on device")
    plan = make_plan(config, gpus=1, overrides=("log.tensorboard=True",), environ={})
    run = SinkRun(folder=RunFolder(tmp_path / "run"), settings=plan.settings)
    warnings: list[str] = []
    sinks = OpenSinks.open(run, warnings.append)
    with patch.object(writer.RecordWriter, "write", side_effect=full):
        for step in range(1, 100):
            sinks.step(row(step))
    (line,) = warnings
    assert line.startswith("warning: log.tensorboard failed after step ")
    assert "No space left on device" in line
    assert line.endswith("the run continues without it, and log.jsonl has all steps")
    assert sinks.views == []
    sinks.close()
    assert len(warnings) == 1


def test_statistics_are_in_a_file_of_their_own_and_among_the_curves(config, tmp_path):
    """A resume deletes the later ones."""
    plan = make_plan(config, gpus=1, overrides=("log.statistics=2",), environ={})
    found = {"Grads/global": Statistics(mean=0.5, max=2.0, min=-1.0, l2=math.inf)}

    def opened(steps_done: int) -> OpenSinks:
        run = SinkRun(folder=RunFolder(tmp_path), settings=plan.settings, steps_done=steps_done)
        return OpenSinks.open(run, warn=pytest.fail)

    sinks = opened(0)
    for step in range(1, 5):
        sinks.step(row(step, statistics=found if step % 2 == 0 else None))
    sinks.close()
    sinks = opened(3)
    sinks.close()
    lines = [json.loads(line) for line in (tmp_path / "statistics.jsonl").read_text().splitlines()]
    values = {"mean": 0.5, "max": 2.0, "min": -1.0, "l2": None}
    assert lines == [{"step": 2, "Grads/global": values}]
    assert curves(row(2, statistics=found))["Grads/global/max"] == 2.0


def test_packages_of_disabled_sinks_are_not_needed(config):
    plan = make_plan(config, gpus=1, overrides=("log.tensorboard=False",), environ={})
    assert enabled_sinks(plan.settings) == []
    assert list(missing_packages(plan)) == []
