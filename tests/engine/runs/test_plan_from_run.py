"""The plan of a run from its record: the same settings, in any layout."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path

import pytest

from engine.errors import ConfigError, UserError
from engine.plan import Plan, make_plan
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import (
    RunRecord,
    evaluation_plan_of_run,
    plan_of_run,
    read_record,
    recorded_config_path,
    recorded_settings,
    write_record,
)

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "gpt_configs").glob("*.py"))
FOREIGN = sorted((ROOT / "tests" / "foreign_configs").glob("*.py"))


def record(path: Path, plan: Plan) -> RunFolder:
    folder = RunFolder(path / "run")
    folder.path.mkdir()
    write_record(folder, plan)
    return folder


@pytest.mark.parametrize("config", [*CONFIGS, *FOREIGN], ids=lambda path: path.stem)
def test_the_plan_of_a_run_is_reproduced_from_its_record(config: Path, tmp_path: Path) -> None:
    """Compare settings, layout, warnings, notes, and the place of each setting in messages."""
    plan = make_plan(config, gpus=None, environ={"DATA": "of the environment.txt"})
    folder = record(tmp_path, plan)
    again = plan_of_run(folder, gpus=None)
    assert (again.settings, again.layout) == (plan.settings, plan.layout)
    assert (again.warnings, again.notes) == (plan.warnings, plan.notes)
    assert [again.cite(name) for name in plan.source_of] == [
        plan.cite(name) for name in plan.source_of
    ]
    assert again.config == plan.config
    assert recorded_settings(folder) == plan.settings
    statements = json.loads(folder.statements.read_bytes())["statements"].values()
    keys = {"name", "written", "value", "file", "line", "weight", "remark"}
    assert [item.keys() for item in statements] == [keys] * len(plan.sources.settings)


BASE = "import os\nWIDTH = 8 * int(os.environ.get('HEADS', '4'))\nSEQ_LEN = 16\n"
CHILD = """
from base import *
BATCH_SIZE = 4
MAX_STEPS = 9
parallel = dict(tensor=dict(size=2, mode="1d"))
model = dict(n_layer=2, n_head=4, n_embd=WIDTH, mlp_ratio=2)
optimizer = dict(lr=0.1, weight_decay=0.5)
lr_scheduler = dict(type="cosine", eta_min=0.01)
loss = dict(type="GPTLMLoss")
"""
GLOBAL = "GLOBAL_BATCH_SIZE = 16\nWIDTH = 32\nSEQ_LEN = 16"


@pytest.fixture
def child(tmp_path: Path) -> RunFolder:
    """A run whose config imports another one, reads the environment and derives settings; the files
    and the environment have changed since."""
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "child.py").write_text(CHILD)
    environ = {"HEADS": "2", "DATA": "poems.jsonl"}
    plan = make_plan(tmp_path / "child.py", gpus=4, overrides=["WIDTH=32"], environ=environ)
    folder = record(tmp_path, plan)
    for name in ("base.py", "child.py"):
        (tmp_path / name).write_text("SEQ_LEN = 'edited'")
    return folder


def test_the_users_files_and_environment_are_not_read_again(child: RunFolder) -> None:
    again = plan_of_run(child, gpus=4)
    settings = again.settings
    assert settings == recorded_settings(child)
    assert (settings.model.n_embd, settings.seq_len, settings.model.n_inner) == (32, 16, 64)
    assert settings.data.path == "poems.jsonl"
    assert settings.lr_scheduler.floor == pytest.approx(0.1)
    assert (again.config.path.name, again.config.overrides) == ("child.py", ("WIDTH=32",))
    assert again.config.text == CHILD
    assert again.cite("batch_size").endswith("child.py:3: BATCH_SIZE=4")
    record = read_record(child)
    assert record.data_parallel == 2
    assert RunRecord.model_validate_json(record.model_dump_json()) == record, (
        "is sent to other ranks"
    )


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["optimizer.lr=0.2"], {"optimizer.lr": 0.2, "lr_scheduler.floor": 0.05}),
        (["optimizer=dict(lr=0.3)"], {"optimizer.lr": 0.3, "optimizer.weight_decay": 0.01}),
        (["TENSOR_PARALLEL=1", "MODE=None"], {"tensor_parallel": 1, "mode": "serial"}),
        (["SEQ_LEN=8"], {"seq_len": 8, "model.block_size": 16}),
        (["data.path=a.txt"], {"data.path": "a.txt"}),
        (["MAX_STEPS=20"], {"max_steps": 20}),
    ],
)
def test_overrides_replace_recorded_settings(child, overrides, changed):
    settings = plan_of_run(child, gpus=4, overrides=overrides).settings
    found = {name: attrgetter(name)(settings) for name in changed}
    assert found == {
        name: pytest.approx(value) if isinstance(value, float) else value
        for name, value in changed.items()
    }


def test_another_number_of_ranks_keeps_a_global_batch_size_in_training_only(tmp_path):
    """An evaluation reads batches of the size that fitted on a rank of the run."""
    config = tmp_path / "config.py"
    config.write_text(CHILD.replace("from base import *\nBATCH_SIZE = 4", GLOBAL))
    folder = record(tmp_path, make_plan(config, gpus=8, environ={}))
    assert recorded_settings(folder).batch_size == 4
    for gpus, batch_size in ((2, 16), (4, 8), (16, 2)):
        again = plan_of_run(folder, gpus=gpus)
        assert (again.global_batch, again.settings.batch_size) == (16, batch_size)
        evaluation = evaluation_plan_of_run(folder, gpus=gpus)
        assert evaluation.settings.batch_size == 4
    with pytest.raises(ConfigError, match=r"GLOBAL_BATCH_SIZE=16 is not a multiple of 3 data"):
        plan_of_run(folder, gpus=6)
    assert evaluation_plan_of_run(folder, gpus=6).layout.data == 3
    by_command_line = evaluation_plan_of_run(folder, gpus=6, overrides=["BATCH_SIZE=5"])
    assert by_command_line.settings.batch_size == 5


def test_an_override_of_the_model_is_rejected(child):
    with pytest.raises(
        UserError, match=r"model.n_layer=3 cannot be overridden: the run's weights have 2"
    ):
        plan_of_run(child, gpus=4, overrides=["model.n_layer=3"])
    with pytest.raises(UserError, match=r"the run's weights have "):
        plan_of_run(child, gpus=4, overrides=["model=dict(type='gpt2_small')"])


def test_the_plan_of_an_older_run_follows_from_its_resolved_settings(child):
    """Older runs recorded no statements."""
    before = plan_of_run(child, gpus=4)
    child.statements.unlink()
    again = plan_of_run(child, gpus=4)
    assert again.settings == before.settings
    assert recorded_config_path(child) is None
    write_record(child, again)
    assert recorded_config_path(child) is None, "it is still not known"


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
def test_a_plan_is_made_in_another_layout(folder, overrides, gpus, axes):
    layout = plan_of_run(folder, gpus=gpus, overrides=overrides).layout
    assert (layout.tensor, layout.pipeline, layout.data) == (axes or (3, 1, 1))


def test_a_problem_is_reported_at_its_place(folder):
    with pytest.raises(ConfigError) as caught:
        plan_of_run(folder, gpus=None, overrides=["TENSOR_PARALLEL=6", "modle.n_layer=1"])
    assert "command line: TENSOR_PARALLEL=6 is not DEPTH times a square" in str(caught.value)
    assert "command line: modle" in str(caught.value)
    with pytest.raises(ConfigError, match=r"gpt2_2p5d_8.py:\d+: .*not a multiple"):
        plan_of_run(folder, gpus=3)
    with pytest.raises(ConfigError, match=r"command line: seed={'x': 1} must be int"):
        plan_of_run(folder, gpus=None, overrides=["seed.x=1"])


def test_a_folder_without_a_run_is_rejected(folder):
    recorded = json.loads(folder.resolved.read_text())
    folder.resolved.write_text(json.dumps({**recorded, "of_another_version": 1}))
    with pytest.raises(UserError, match=r"resolved.json: of_another_version: Extra inputs"):
        recorded_settings(folder)
    folder.statements.write_text('{"config": 3}')
    with pytest.raises(UserError, match=r"statements.json: config: Input should be a valid string"):
        plan_of_run(folder, gpus=None)
    folder.statements.unlink()
    folder.resolved.unlink()
    with pytest.raises(UserError, match=r"resolved\.json cannot be read: No such file"):
        plan_of_run(folder, gpus=None)
