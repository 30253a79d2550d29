"""cuboid checkpoint ls, verify and prune."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.checkpoint.directory import CheckpointDirectory
from engine.runs.folder import RunFolder, claim_folder
from launch import cli
from tests.support.checkpoints import Trainee
from tests.support.training import TrainingCase
from tests.support.worlds import run_world

LOSSES = {1: None, 2: 1.5, 3: 2.5, 4: None}


def write_all(rank: int, size: int, path: Path) -> None:
    trainee = Trainee.make(TrainingCase(data=2, zero=1), rank)
    for step, loss in LOSSES.items():
        trainee.train([step])
        trainee.save(CheckpointDirectory(path), step, val_loss=loss, train_loss=step + 0.25)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command") / "run"
    run_world(2, write_all, RunFolder(path).checkpoints)
    return path


@pytest.fixture
def folder(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Create runs/ in the current folder, with a newest run that has checkpoints."""
    monkeypatch.chdir(tmp_path)
    for name in ("a-20260101-000000", "b-20260201-000000", "b-20260301-000000"):
        claim_folder("x", name, output=Path("runs") / name)
    run = RunFolder(Path("runs/b-20260201-000000"))
    shutil.copytree(RunFolder(written).checkpoints, run.checkpoints)
    return run


def steps(folder: RunFolder) -> list[int]:
    return CheckpointDirectory(folder.checkpoints).steps()


def damage(folder: RunFolder, step: int) -> None:
    (CheckpointDirectory(folder.checkpoints).folder(step) / "__1_0.distcp").write_bytes(b"")


def command(*words: str) -> int:
    return cli.main(["checkpoint", *words], {})


def test_checkpoint_ls_has_a_row_per_checkpoint(folder, capsys):
    (CheckpointDirectory(folder.checkpoints).folder(3) / "manifest.json").write_text("{")
    assert command("ls") == 0
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title == f"{folder.path} (running at step 0)"
    assert header.split() == "step written size training loss validation loss layout".split()
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0].split()[5:7] == ["1.2500", "tensor"]
    assert rows[1].split()[5:7] == ["2.2500", "1.5000"]
    assert "tensor 1 (serial) x pipeline 1 x data 2, ZeRO 1" in rows[1]
    assert "manifest.json is not JSON" in rows[2]


def test_ls_does_not_import_torch(folder):
    code = f"""
import sys
from launch import cli
assert cli.main(["checkpoint", "ls", {str(folder.path)!r}], {{}}) == 0
print("torch" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("False\n")


def test_verify_names_corrupt_files_and_exits_with_1(folder, capsys):
    assert command("verify") == 0
    assert capsys.readouterr().out.count(": OK, all hashes match\n") == 4
    damage(folder, 3)
    assert command("verify", str(folder.path)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith(": OK, all hashes match") for line in lines] == [True, True, False, True]
    assert "step-00000003: __1_0.distcp has 0 of" in lines[2]


def test_prune_keeps_the_newest_and_the_best(folder, capsys):
    for leftover in ("step-00000009.tmp", "step-00000005.aside"):
        (folder.checkpoints / leftover).mkdir()
    assert command("prune", "--keep", "1") == 0
    assert steps(folder) == [2, 4]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]
    assert capsys.readouterr().out.count("removed") == 4


def test_prune_keeps_valid_checkpoints(folder):
    """Corrupt checkpoints do not count towards --keep."""
    damage(folder, 4)
    damage(folder, 2)
    assert command("prune", "--keep", "1") == 0
    assert steps(folder) == [3]


def test_prune_removes_nothing_if_all_checkpoints_are_corrupt(folder, capsys):
    for step in LOSSES:
        damage(folder, step)
    assert command("prune", "--keep", "1") == 2
    assert "all checkpoints are corrupt, so nothing was removed" in capsys.readouterr().err
    assert steps(folder) == [1, 2, 3, 4]


def test_prune_keeps_the_number_that_the_run_recorded(folder):
    folder.resolved.write_text('{"checkpoint": {"keep": 3}}')
    assert command("prune") == 0
    assert steps(folder) == [2, 3, 4]


def test_prune_of_a_running_run_is_rejected(folder, capsys):
    with folder.lock():
        assert command("prune", "--keep", "1") == 2
    assert "is in use by process" in capsys.readouterr().err
    assert steps(folder) == [1, 2, 3, 4]


def test_invalid_actions_are_rejected_in_one_line(folder, capsys):
    for words, message in (
        (("ls", "nowhere"), "nowhere does not exist"),
        (("ls", "--keep", "3"), "--keep is for prune, not for ls"),
        (("prune", "--keep", "0"), "--keep"),
        (("prune",), "records no checkpoint.keep; pass --keep N"),
        (("burn",), "invalid choice"),
    ):
        assert command(*words) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    shutil.rmtree("runs")
    assert command("ls") == 2
    assert "no run under runs/ has checkpoints; pass the path of a run" in capsys.readouterr().err


def test_command_that_reads_a_killed_run_records_its_end(folder, capsys):
    """The process of the run released the lock without writing a status."""
    with folder.lock():
        assert command("ls") == 0
        assert "(running at step 0)" in capsys.readouterr().out, "it is"
    folder.log.write_text('{"step": 4}\n')
    run = str(folder.path)
    for look in (
        ["checkpoint", "ls", run],
        ["evaluate", run, "--step", "9"],
        ["export", run, "--to", "pt"],
        ["train", "--resume", run],
    ):
        status = json.loads(folder.status.read_text()) | {"state": "running"}
        folder.status.write_text(json.dumps(status))
        cli.main(look, {})
        settled = json.loads(folder.status.read_text())
        assert (settled["state"], settled["step"]) == ("failed", 4), look
