"""The number of trained positions, in checkpoints and models, across resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.evaluation.evaluate import evaluate
from engine.evaluation.request import EvaluationRequest
from engine.inout.open_model import open_saved_model
from engine.plan import make_plan
from engine.runs.folder import RunFolder
from engine.runs.plan_summary import plan_remarks
from engine.runs.start_candidates import StartOptions
from launch import cli
from tests.support.checkpoints import reseal
from tests.support.evaluation import world_of_run
from tests.support.jobs import RUN, TINY, Job, checkpoints_of, run_all
from tests.support.worlds import free_port

POSITIONS = "model.block_size=32"


def job(folder: Path, *overrides: str, **more: Any) -> Job:
    options = StartOptions(
        output=Path(more.pop("output", RUN)),
        resume=more.pop("resume", "none"),
        new_data=True,
        init_from=more.pop("init", None),
    )
    return Job(folder=folder, overrides=overrides, options=options, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of SEQ_LEN 8, resumed with 16 and then with 4; and runs with its initial weights."""
    path = tmp_path_factory.mktemp("lengths")
    (path / "tiny.py").write_text(TINY)
    more = (POSITIONS, "checkpoint.every=1", "checkpoint.keep=9")
    init = Path("run/checkpoints/step-00000002")
    jobs = [
        job(path, *more, "MAX_STEPS=1"),
        job(path, *more, "MAX_STEPS=2", "SEQ_LEN=16", resume="run"),
        job(path, *more, "MAX_STEPS=3", "SEQ_LEN=4", resume="run"),
        job(path, POSITIONS, "MAX_STEPS=1", "SEQ_LEN=4", output="new", init=init),
        job(path, "model.block_size=12", "MAX_STEPS=1", "SEQ_LEN=4", output="cut", init=init),
    ]
    for (ended,) in run_all(jobs):
        assert ended.error == "", ended.err
    return path


def test_the_longest_trained_length_is_recorded(folder: Path) -> None:
    lengths = [open_saved_model(checkpoints_of(folder).folder(step)).length for step in (1, 2, 3)]
    assert lengths == [8, 16, 16]
    final = open_saved_model(folder / "run" / "model.safetensors")
    assert (final.length, final.step, final.config.block_size) == (16, 3, 32)
    assert open_saved_model(folder / "new").length == 16
    assert open_saved_model(folder / "cut").length == 12


def test_the_trained_length_of_an_older_checkpoint_is_its_seq_len(folder: Path) -> None:
    checkpoint = checkpoints_of(folder, Path("new")).folder(1)
    file = checkpoint / "training.json"
    content = json.loads(file.read_text())
    assert content.pop("trained_length") == 16
    file.write_text(json.dumps(content))
    reseal(checkpoint)
    assert open_saved_model(checkpoint).length == 4


def test_an_export_records_the_trained_length(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    line = "positions from 16 on are untrained; use at most 16 tokens of context"
    for form, out in (("hf", "hf"), ("safetensors", "x.safetensors")):
        command = ["export", "run", "--step", "2", "--to", form, "--out", out]
        assert cli.main(command, {}) == 0
        assert line in capsys.readouterr().out.splitlines()
        assert open_saved_model(Path(out)).length == 16


def test_an_evaluation_of_longer_samples_gives_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    warnings = []
    for length in (16, 17):
        with free_port() as port, world_of_run(0, 1, port, (f"SEQ_LEN={length}",)) as world:
            evaluate(world, RunFolder(RUN), "2", EvaluationRequest(samples=4), cache=folder)
        warnings.append(capsys.readouterr().err)
    assert warnings == [
        "",
        "warning: command line: SEQ_LEN=17 is longer than the 16 positions that "
        "run/checkpoints/step-00000002 was trained with: targets beyond them are predicted from "
        "untrained positions\n",
    ]


def test_a_plan_notes_the_positions_that_are_not_trained(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    plan = make_plan(tmp_path / "tiny.py", gpus=1, overrides=[POSITIONS], environ={})
    assert (
        "note: command line: model.block_size=32 is more than SEQ_LEN=8: this run does not train "
        "the positions from 8 on; to leave them out, set model.block_size=8"
    ) in plan_remarks(plan)
    plan = make_plan(tmp_path / "tiny.py", gpus=1, environ={})
    assert not [line for line in plan_remarks(plan) if "positions" in line]
