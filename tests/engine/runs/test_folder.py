"""Run folders: one owner each, found by a restart, and their status."""

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


def test_the_default_folder_is_name_and_time(root):
    folder = claim_folder("demo", "a", root=root)
    assert folder.path.parent == root
    assert re.fullmatch(r"demo-\d{8}-\d{6}", folder.path.name)
    status = folder.read_status()
    assert status["state"] == "running"
    assert status["run_id"] == "a"


def test_a_restart_gets_its_folder_again_and_another_run_a_new_one(root):
    first, second = claim_folder("demo", "a", root=root), claim_folder("demo", "b", root=root)
    first.write_status("failed", step=7, message="killed")
    assert first.path != second.path
    assert claim_folder("demo", "a", root=root) == first
    assert claim_folder("demo", "b", root=root) == second


def test_a_name_with_glob_characters_is_taken_literally(root):
    first = claim_folder("de[mo]*", "a", root=root)
    assert claim_folder("de[mo]*", "a", root=root) == first


def test_concurrent_runs_get_separate_folders(root):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda n: claim_folder("demo", str(n), root=root), range(24)))
    assert len({folder.path for folder in folders}) == 24
    assert sorted(int(f.read_status()["run_id"]) for f in folders) == list(range(24))


def test_the_newest_run_is_the_last_claimed_even_if_the_clock_was_set_back(root, monkeypatch):
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


def test_one_of_two_concurrent_claims_of_a_folder_is_rejected(tmp_path):
    def attempt(run_id: str) -> str | None:
        try:
            folder = claim_folder("demo", run_id, output=tmp_path / "out")
            return str(folder.read_status()["run_id"])
        except UserError:
            return None

    with ThreadPoolExecutor(8) as pool:
        owners = [owner for owner in pool.map(attempt, map(str, range(24))) if owner is not None]
    assert len(owners) == 1


def test_a_claim_between_check_and_creation_is_rejected(tmp_path, monkeypatch):
    claim_folder("demo", "a", output=tmp_path / "out")
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))  # it looked empty
    with pytest.raises(UserError, match="contains a run"):
        claim_folder("demo", "b", output=tmp_path / "out")


def test_a_folder_in_use_is_rejected_with_the_reason(tmp_path):
    output = tmp_path / "out"
    claim_folder("demo", "a", output=output).write_status("finished", step=30)
    with pytest.raises(
        UserError, match=r"out contains a run \(finished at step 30\); --resume .* continues"
    ):
        claim_folder("demo", "b", output=output)
    assert claim_folder("demo", "a", output=output) == RunFolder(output)


def test_an_empty_folder_is_accepted_and_a_foreign_one_rejected(tmp_path):
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
def test_a_folder_that_cannot_be_created_is_rejected(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        claim_folder("demo", "a", output=tmp_path / "out")


def test_the_record_and_the_status_are_written(tmp_path):
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


def test_reading_the_status_marks_a_killed_run_as_failed(tmp_path):
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
def test_the_status_of_an_ended_run_is_not_overwritten(tmp_path, state):
    folder = claim_folder("demo", "a", output=tmp_path / "out")
    folder.write_status(state, step=7, message="so it was")
    before = folder.status.read_bytes()
    folder.mark_if_killed()
    assert folder.status.read_bytes() == before
