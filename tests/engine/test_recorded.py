"""The plan of a run from what it recorded: the same settings, in any layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config.errors import ConfigError
from engine.errors import Refused
from engine.plan import Plan, make_plan
from engine.recorded import plan_of_run, recorded_settings
from engine.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "gpt_configs").glob("*.py"))
FOREIGN = sorted((ROOT / "tests" / "foreign_configs").glob("*.py"))
PLACES = {"name", "source"}


def record(path: Path, plan: Plan) -> RunFolder:
    folder = RunFolder(path / "run")
    folder.path.mkdir()
    folder.record(Path(plan.settings.source), plan.settings.model_dump(mode="json"))
    return folder


def settings(plan: Plan) -> dict[str, Any]:
    return plan.settings.model_dump(mode="json", exclude=PLACES)


@pytest.mark.parametrize("config", [*CONFIGS, *FOREIGN], ids=lambda path: path.stem)
def test_any_config_is_planned_again_from_what_it_resolved_to(config: Path, tmp_path: Path) -> None:
    plan = make_plan(config, gpus=None, environ={"DATA": "of the environment.txt"})
    folder = record(tmp_path, plan)
    again = plan_of_run(folder, gpus=None)
    assert settings(again) == settings(plan)
    assert again.layout == plan.layout
    assert recorded_settings(folder) == plan.settings


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    config = ROOT / "gpt_configs" / "gpt2_2p5d_8.py"
    return record(tmp_path, make_plan(config, gpus=None, environ={}))


@pytest.mark.parametrize(
    ("overrides", "gpus", "axes"),
    [
        (["TENSOR_PARALLEL=1", "MODE=None", "DEPTH=1"], None, (1, 1, 1)),
        (["TENSOR_PARALLEL=1", "MODE=None", "DEPTH=1", "PIPELINE=2"], 4, (1, 2, 2)),
        (["parallel.tensor.size=3", "parallel.tensor.mode=1d", "parallel.tensor.depth=1"], 3, 0),
    ],
)
def test_in_another_layout(folder, overrides, gpus, axes):
    layout = plan_of_run(folder, gpus=gpus, overrides=overrides).layout
    assert (layout.tensor, layout.pipeline, layout.data) == (axes or (3, 1, 1))


def test_what_is_wrong_is_told_of_the_right_place(folder):
    with pytest.raises(ConfigError) as caught:
        plan_of_run(folder, gpus=None, overrides=["TENSOR_PARALLEL=6", "modle.n_layer=1"])
    assert "command line: TENSOR_PARALLEL=6 is not DEPTH times a square" in str(caught.value)
    assert "command line: modle" in str(caught.value)
    with pytest.raises(ConfigError, match=r"run/resolved.json: .*not a multiple"):
        plan_of_run(folder, gpus=3)
    with pytest.raises(ConfigError, match=r"seed\.x: seed is 42, not a dict"):
        plan_of_run(folder, gpus=None, overrides=["seed.x=1"])


def test_what_is_no_run_is_refused(folder):
    told = json.loads(folder.resolved.read_text())
    folder.resolved.write_text(json.dumps({**told, "of_another_version": 1}))
    with pytest.raises(Refused, match=r"resolved.json: of_another_version: Extra inputs"):
        recorded_settings(folder)
    folder.resolved.unlink()
    with pytest.raises(Refused, match=r"resolved\.json cannot be read: No such file"):
        plan_of_run(folder, gpus=None)
