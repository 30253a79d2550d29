"""Run folders: one owner each, found again by a restart, and never half written."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.errors import UserError
from engine.runs import folder as run_folder
from engine.runs.folder import RunFolder, claim_folder, list_runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_the_default_is_name_and_time(root):
    folder = claim_folder("demo", "a", root=root)
    assert folder.path.parent == root
    assert re.fullmatch(r"demo-\d{8}-\d{6}", folder.path.name)
    status = folder.read_status()
    assert status["state"] == "running"
    assert status["run_id"] == "a"


def test_a_restart_gets_the_folder_again_and_another_run_does_not(root):
    first, second = claim_folder("demo", "a", root=root), claim_folder("demo", "b", root=root)
    first.write_status("failed", step=7, message="killed")
    assert first.path != second.path
    assert claim_folder("demo", "a", root=root) == first
    assert claim_folder("demo", "b", root=root) == second


def test_names_are_no_patterns(root):
    first = claim_folder("de[mo]*", "a", root=root)
    assert claim_folder("de[mo]*", "a", root=root) == first


def test_runs_that_start_together_get_a_folder_each(root):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda n: claim_folder("demo", str(n), root=root), range(24)))
    assert len({folder.path for folder in folders}) == 24
    assert sorted(int(f.read_status()["run_id"]) for f in folders) == list(range(24))


def test_the_newest_run_is_the_last_one_whatever_the_clock_said(root, monkeypatch):
    begun: list[RunFolder] = []
    for day, name in ((2, "b"), (3, "b"), (1, "b"), (1, "a"), (3, "b"), (4, "a")):
        clock = SimpleNamespace(now=lambda day=day: datetime(2026, 5, day))
        with monkeypatch.context() as set_back:
            set_back.setattr(run_folder, "datetime", clock)
            set_back.setattr(run_folder, "_now", str)
            begun.append(claim_folder(name, str(len(begun)), root=root))
    assert list_runs(root) == begun[::-1]
    assert [folder.path.name for folder in begun] == [
        "b-20260502-000000",
        "b-20260503-000000",
        "b-20260503-000000-2",
        "a-20260503-000000-3",
        "b-20260503-000000-4",
        "a-20260504-000000",
    ]


def test_of_two_that_want_one_folder_one_is_refused(tmp_path):
    def attempt(run_id: str) -> str | None:
        try:
            folder = claim_folder("demo", run_id, output=tmp_path / "out")
            return str(folder.read_status()["run_id"])
        except UserError:
            return None

    with ThreadPoolExecutor(8) as pool:
        owners = [owner for owner in pool.map(attempt, map(str, range(24))) if owner is not None]
    assert len(owners) == 1


def test_who_comes_between_a_look_and_a_claim_is_seen(tmp_path, monkeypatch):
    claim_folder("demo", "a", output=tmp_path / "out")
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))  # it looked empty
    with pytest.raises(UserError, match="contains a run"):
        claim_folder("demo", "b", output=tmp_path / "out")


def test_a_used_folder_is_refused_and_says_why(tmp_path):
    output = tmp_path / "out"
    claim_folder("demo", "a", output=output).write_status("finished", step=30)
    with pytest.raises(
        UserError, match=r"out contains a run \(finished at step 30\); --resume .* continues"
    ):
        claim_folder("demo", "b", output=output)
    assert claim_folder("demo", "a", output=output) == RunFolder(output)


def test_an_empty_folder_is_taken_and_a_foreign_one_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    claim_folder("demo", "a", output=tmp_path / "empty")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        claim_folder("demo", "a", output=tmp_path / "notes")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        claim_folder("demo", "a", output=tmp_path / "file")
    with pytest.raises(UserError, match="Not a directory"):
        claim_folder("demo", "a", output=tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        claim_folder("demo", "a", output=tmp_path / "out")


def test_a_run_is_recorded_and_ends(tmp_path):
    folder = claim_folder("demo", "a", output=tmp_path / "out")
    text = "BATCH_SIZE = 8  # größer\n"
    folder.record(config=text, resolved={"batch_size": 8}, statements={"name": "demo"})
    assert folder.config.read_bytes() == text.encode()
    assert json.loads(folder.resolved.read_text()) == {"batch_size": 8}
    assert json.loads(folder.statements.read_text()) == {"name": "demo"}
    started = folder.read_status()["started"]
    folder.write_status("interrupted", step=12, message="SIGTERM")
    status = folder.read_status()
    assert (status["state"], status["step"], status["message"]) == ("interrupted", 12, "SIGTERM")
    assert status["started"] == started
    assert status["ended"] >= started


def test_who_looks_writes_down_that_a_run_was_killed(tmp_path):
    folder = claim_folder("demo", "a", output=tmp_path / "out")
    folder.log.write_text('{"step": 1}\n{"step": 2}\n')
    with folder.lock():
        folder.mark_if_killed()
        assert folder.read_status()["state"] == "running", "it is"
    with pytest.raises(UserError, match=r"contains a run \(failed at step 2\)"):
        claim_folder("demo", "b", output=tmp_path / "out")
    status = folder.read_status()
    assert (status["state"], status["step"]) == ("failed", 2)
    assert status["message"] == "process was killed (no error recorded)"
    assert status["ended"] >= status["started"]


@pytest.mark.parametrize("state", ["finished", "interrupted", "failed"])
def test_how_a_run_ended_is_not_written_over(tmp_path, state):
    folder = claim_folder("demo", "a", output=tmp_path / "out")
    folder.write_status(state, step=7, message="so it was")
    before = folder.status.read_bytes()
    folder.mark_if_killed()
    assert folder.status.read_bytes() == before
