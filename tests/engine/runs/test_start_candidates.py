"""The candidates for a resume, without training."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.checkpoint.directory import CheckpointDirectory
from engine.errors import UserError
from engine.plan import Plan, make_plan
from engine.runs.folder import RunFolder, RunStatus, claim_folder
from engine.runs.plan_from_run import write_record
from engine.runs.start_candidates import StartCandidate, StartOptions, start_candidates
from tests.support.jobs import TINY

OVER = "starts over"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(TINY)
    return make_plan("tiny.py", gpus=1, environ={})


def make(name: str, run_id: str = "other", steps: tuple[int, ...] = ()) -> RunFolder:
    folder = claim_folder("tiny", run_id, output=Path(name))
    for step in steps:
        CheckpointDirectory(folder.checkpoints).folder(step).mkdir(parents=True)
    return folder


def found(plan: Plan, resume: str | None, output: str | None = None) -> list[object]:
    """Return (folder, steps) of each candidate; 'starts over' in place of the steps."""
    asked = StartOptions(resume=resume, output=Path(output) if output else None)
    return [
        (
            way.run_folder,
            OVER if way.starts_over else [int(Path(c).name[5:]) for c in way.checkpoints],
        )
        for way in start_candidates("mine", plan, asked)
    ]


OLD, NEW, SECOND = (
    f"runs/tiny-2026{time}" for time in ("0101-000000", "0202-000000", "0202-000000-2")
)
OTHER = "runs/tiny-large-20270101-000000"  # of another config


def test_a_run_without_resume_gets_a_new_folder(plan):
    make(NEW, steps=(1, 2))
    assert found(plan, "none") == [(None, OVER)]


def test_auto_tries_runs_of_the_name_newest_first_and_checkpoints_by_step(plan):
    make(NEW, steps=(9, 100, 20))
    make(SECOND)
    make(OLD, steps=(5,))
    make(OTHER, steps=(7,))
    os.utime(OLD)  # touched last
    assert found(plan, "auto") == [
        (SECOND, []),
        (NEW, [100, 20, 9]),
        (OLD, [5]),
        (None, OVER),
    ]


def test_a_config_that_resumes_continues_its_newest_run(plan, tmp_path):
    make(OLD, steps=(3, 5))
    make(NEW, steps=(9,))
    resuming = make_plan("tiny.py", gpus=1, overrides=["checkpoint.auto_resume=True"], environ={})
    assert found(resuming, None) == found(plan, "auto") == [(NEW, [9]), (OLD, [5, 3]), (None, OVER)]
    assert found(resuming, OLD) == found(plan, OLD) == [(OLD, [5, 3])]
    assert found(resuming, None, output="runs/new") == [(None, OVER)]
    assert found(resuming, "none") == found(plan, "none") == found(plan, None) == [(None, OVER)]


def test_a_restart_continues_in_its_folder_whatever_the_options(plan):
    make(OLD, "mine", steps=(3,))
    make(NEW, steps=(9,))
    for resume in ("none", "auto"):
        assert found(plan, resume) == [(OLD, [3]), (OLD, OVER)]
    assert found(plan, OLD + "/checkpoints/step-00000003") == [(OLD, [3]), (OLD, OVER)]


def test_a_restart_continues_in_its_output_folder(plan):
    make("out", "mine", steps=(4,))
    make(NEW, steps=(9,))
    assert found(plan, "none", "out") == [("out", [4]), ("out", OVER)]
    # Without a checkpoint of its own it resumes from the requested run.
    assert found(plan, NEW, "out") == [("out", [4]), ("out", [9]), ("out", OVER)]


def test_auto_with_an_output_considers_only_that_folder(plan):
    make(NEW, steps=(9,))
    assert found(plan, "auto", "out") == [(None, OVER)]
    make("out", steps=(1, 2))
    assert found(plan, "auto", "out") == [("out", [2, 1]), ("out", OVER)]


def test_a_path_of_a_run_or_checkpoint_is_the_only_candidate(plan):
    make(OLD, steps=(1, 2))
    assert found(plan, OLD) == [(OLD, [2, 1])]
    assert found(plan, OLD, OLD) == [(OLD, [2, 1])]
    assert found(plan, f"{OLD}/checkpoints/step-00000001") == [(OLD, [1])]


def test_a_resume_into_another_output_is_a_new_run(plan):
    make(OLD, steps=(1, 2))
    assert found(plan, OLD, "out") == [(None, [2, 1])]


def test_a_checkpoint_outside_of_any_run_starts_a_new_run(plan):
    Path("backup/step-00000005").mkdir(parents=True)
    assert found(plan, "backup/step-00000005") == [(None, [5])]


@pytest.mark.parametrize("path", ["nowhere", "model.pt", "runs", "step-00000001"])
def test_other_paths_are_rejected(plan, path):
    make(OLD, steps=(1,))
    Path("model.pt").touch()
    with pytest.raises(UserError, match=r"does not exist|is neither a run nor a checkpoint"):
        found(plan, path)


def test_a_candidate_survives_json(plan):
    make(OLD, steps=(1,))
    (way,) = start_candidates("mine", plan, StartOptions(resume=OLD))
    assert way == StartCandidate(run_folder=OLD, checkpoints=[f"{OLD}/checkpoints/step-00000001"])


def record(name: str, config: Path, state: RunStatus = "interrupted") -> RunFolder:
    """Create a run of a config file, with a checkpoint of step 4."""
    folder = make(name, steps=(4,))
    plan = make_plan(config, gpus=1, environ={})
    write_record(folder, plan)
    folder.write_status(state, step=4)
    return folder


def copy_of_config(folder: str) -> Path:
    Path(folder).mkdir()
    path = Path(folder) / "tiny.py"
    path.write_text(TINY)
    return path


def test_auto_skips_runs_of_other_config_files_of_the_same_name(plan):
    """A remark has the skipped run, the reason, and the option that continues it."""
    one, other = copy_of_config("one"), copy_of_config("other")
    record(OLD, one), record(NEW, other)
    asked = StartOptions(resume="auto")
    mine, new = start_candidates("mine", make_plan("one/tiny.py", gpus=1, environ={}), asked)
    assert (mine.run_folder, new.run_folder) == (OLD, None)
    assert mine.remarks == [
        f"skipping {NEW}: it is a run of {other.resolve()}, not of {one.resolve()}; "
        f"--resume {NEW} continues it"
    ]
    (anew,) = start_candidates("mine", plan, asked)
    assert (anew.run_folder, anew.starts_over) == (None, True)
    assert [line.split(": ")[0] for line in anew.remarks[:2]] == [
        f"skipping {NEW}",
        f"skipping {OLD}",
    ]
    assert anew.remarks[2] == f"{plan.config.path} has no run to continue: starting a new one"


def test_a_config_file_is_recognized_by_another_path(plan):
    config = copy_of_config("one")
    Path("link").symlink_to("one")
    record(NEW, config)
    first, _ = start_candidates(
        "mine", make_plan("link/tiny.py", gpus=1, environ={}), StartOptions(resume="auto")
    )
    assert (first.run_folder, first.remarks) == (NEW, [])


def test_a_run_without_a_recorded_config_is_selected_by_name_with_a_remark(plan):
    make(NEW, steps=(4,))
    first, _ = start_candidates("mine", plan, StartOptions(resume="auto"))
    assert first.run_folder == NEW
    assert first.remarks == [f"{NEW} records no config file; it is selected by its name"]


def test_a_finished_run_is_rejected_with_the_ways_to_train_further(plan):
    record(NEW, Path("tiny.py"), "finished")
    message = (
        f"{NEW} is finished at step 4: MAX_STEPS=N, with N above 4, trains it further; "
        f"--init-from {NEW} starts a new run with its weights"
    )
    with pytest.raises(UserError) as refusal:
        found(plan, NEW)
    assert str(refusal.value) == message
    first, _ = start_candidates("mine", plan, StartOptions(resume="auto"))
    assert first.finished == message
    more = make_plan("tiny.py", gpus=1, overrides=["MAX_STEPS=5"], environ={})
    assert found(more, NEW) == [(NEW, [4])]


def test_a_run_without_a_checkpoint_is_rejected_with_its_state(plan):
    make(NEW).write_status("failed", step=3)
    with pytest.raises(UserError, match=r"has no checkpoint to resume from \(failed at step 3\)"):
        found(plan, NEW)


def test_a_moved_run_resumes_at_its_new_place(plan):
    """The recorded log.dir is its old place."""
    there = make_plan("tiny.py", gpus=1, overrides=["log.dir=out"], environ={})
    write_record(make("out", steps=(4,)), there)
    Path("out").rename("moved")
    assert found(there, "moved") == [("moved", [4])]
