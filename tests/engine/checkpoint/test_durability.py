"""The order of disk operations during a save, and failing disks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from engine.checkpoint import manifest
from engine.checkpoint.dcp_io import OTHER_FILE_SYSTEM
from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.errors import RunError
from engine.runs.folder import RunFolder
from engine.runs.metrics import JsonLinesLog, StepMetrics
from engine.runs.start_candidates import StartOptions
from engine.world.world import World
from tests.support.checkpoints import Trainee
from tests.support.jobs import Job, checkpoints_of, into_run, run, run_all
from tests.support.training import TrainingCase as SmallRun
from tests.support.worlds import WorldError, run_world


@contextlib.contextmanager
def logging_disk_operations(world: World) -> Iterator[None]:
    """Log the disk operations on checkpoints and their folders, and write them to seen.json."""
    seen: list[tuple[str, str]] = []
    sync, rename, remove, digest = os.fsync, Path.rename, shutil.rmtree, manifest.digest_of

    def see(what: str, path: Path) -> None:
        path = path.resolve().relative_to(Path.cwd())
        if path.parts[1:2] in [(), ("checkpoints",)]:
            seen.append((what, str(path)))

    def watched_sync(handle: int) -> None:
        see("sync", Path(f"/proc/self/fd/{handle}").readlink())
        sync(handle)

    def watched_rename(self: Path, target: Path) -> Path:
        see("rename", target)
        return rename(self, target)

    def watched_remove(path: Path, **more: Any) -> None:
        if path.exists():
            see("remove", path)
        remove(path, **more)

    def watched_digest(file: Any) -> str:
        see("read back", Path(file.name))
        return digest(file)

    with (
        patch("os.fsync", watched_sync),
        patch.object(Path, "rename", watched_rename),
        patch("shutil.rmtree", watched_remove),
        patch("engine.checkpoint.manifest.digest_of", watched_digest),
    ):
        yield
    Path("seen.json").write_text(json.dumps(seen))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_files_are_fsynced_and_read_back_before_the_rename_and_older_checkpoints_deleted_after_it(
    tmp_path, asynchronous
):
    overrides = ("MAX_STEPS=2", "checkpoint.every=1", "checkpoint.keep=1")
    more = f"checkpoint.asynchronous={asynchronous}"
    (ended,) = run(into_run(tmp_path, *overrides, more, planted=logging_disk_operations))
    assert ended.error == ""
    seen = [(what, path) for what, path in json.loads((tmp_path / "seen.json").read_text())]
    folder = "run/checkpoints"
    last, name = f"{folder}/step-00000001.tmp", f"{folder}/step-00000002"
    draft = f"{name}.tmp"
    files = {file.name for file in checkpoints_of(tmp_path).folder(2).iterdir()}
    assert {".metadata", "manifest.json", "training.json", "__0_0.distcp"} == files
    for file in files:
        synced = f"{file}.tmp" if file == ".metadata" else file  # as DCP writes it
        assert seen.index(("sync", f"{draft}/{synced}")) < seen.index(
            ("read back", f"{draft}/{file}")
        )
    end = seen.index(("remove", last)) + 1
    assert seen[end - 6 : end] == [
        ("sync", draft),
        ("rename", name),
        ("sync", folder),
        ("sync", "run"),
        ("rename", last),
        ("remove", last),
    ]


def save_on_a_corrupting_disk(rank: int, size: int, path: Path) -> str:
    """Save while the disk flips a bit in every file of the last rank."""
    sync = os.fsync

    def flipping(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink()
        if name.is_file() and rank == size - 1:
            data = bytearray(name.read_bytes())
            data[-1] ^= 1
            with name.open("r+b") as file:
                file.write(data)
        sync(handle)

    trainee = Trainee.make(SmallRun(data=2), rank)
    with patch("os.fsync", flipping), pytest.raises(RunError) as failure:
        trainee.save(CheckpointDirectory(path), 1)
    return str(failure.value)


def test_a_bit_that_flips_during_the_write_fails_the_save(tmp_path):
    said = {*run_world(2, save_on_a_corrupting_disk, tmp_path)}
    (one,) = said
    assert one.startswith("checkpoint of step 1: rank 1: ")
    assert one.endswith(
        "__1_0.distcp was changed: its SHA-256 differs right after it was written; check the disk"
    )
    assert CheckpointDirectory(tmp_path).steps() == []
    assert CheckpointDirectory(tmp_path).leftovers() == []


def save_into_separate_folders(rank: int, size: int, path: Path) -> list[str]:
    """Save each rank into a separate folder, as on machines without a shared file system. At step
    2, rank 1 has a folder with the name of the temporary one."""
    trainee, said = Trainee.make(SmallRun(data=2), rank), []
    for step in (1, 2):
        directory = CheckpointDirectory(path / str(rank))
        if step == 2 and rank == 1:
            directory.temporary(step).mkdir(parents=True)
        with pytest.raises(RunError) as failure:
            trainee.save(directory, step)
        said.append(str(failure.value))
    return said


def test_ranks_without_a_shared_file_system_fail_the_save(tmp_path):
    said, also = run_world(2, save_into_separate_folders, tmp_path)
    assert said == also
    assert said == [
        f"checkpoint of step 1: rank 1: {tmp_path}/1/step-00000001.tmp does not exist "
        f"here: {OTHER_FILE_SYSTEM}",
        f"checkpoint of step 2: {tmp_path}/0/step-00000002.tmp/__1_0.distcp is not visible on "
        f"rank 0: {OTHER_FILE_SYSTEM}",
    ]
    assert list((tmp_path / "0").iterdir()) == []


def save_without_and_with_free_space(rank: int, size: int, path: Path) -> str:
    """Save on a disk that reports too little free space, then with enough of it."""
    trainee = Trainee.make(SmallRun(), rank)
    trainee.train([1])
    with (
        patch("shutil.disk_usage", lambda path: SimpleNamespace(free=1234)),
        pytest.raises(RunError) as failure,
    ):
        trainee.save(CheckpointDirectory(path), 1)
    trainee.save(CheckpointDirectory(path), 1)
    return str(failure.value)


def test_the_reported_bytes_suffice_and_are_at_most_twice_the_checkpoint(tmp_path):
    (said,) = run_world(1, save_without_and_with_free_space, tmp_path)
    match = re.fullmatch(
        f"checkpoint of step 1: {tmp_path}/step-00000001 needs ([0-9,]+) bytes, but its disk has "
        "1,234 free; free some space, or write to another disk",
        said,
    )
    assert match is not None, said
    needed = int(match[1].replace(",", ""))
    taken = sum(path.stat().st_size for path in CheckpointDirectory(tmp_path).folder(1).iterdir())
    assert taken <= needed <= 2 * taken


def save_twice(rank: int, size: int, path: Path) -> None:
    trainee = Trainee.make(SmallRun(), rank)
    trainee.train([1])
    trainee.save(CheckpointDirectory(path), 1)
    trainee.train([2])
    trainee.save(CheckpointDirectory(path), 1)


def test_a_save_over_an_existing_checkpoint_fails(tmp_path):
    with pytest.raises(WorldError, match="already exists, and a checkpoint is never overwritten"):
        run_world(1, save_twice, tmp_path)
    assert SavedCheckpoint(CheckpointDirectory(tmp_path).folder(1)).verify() == []
    assert CheckpointDirectory(tmp_path).leftovers() == []


# Failing disks; these tests need Linux and root.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk, mounted for the test."""
    path = tmp_path / "disk"
    path.mkdir()
    size = ["-o", "size=1800k"]
    made = subprocess.run(["mount", "-t", "tmpfs", *size, "none", str(path)], capture_output=True)
    if made.returncode:
        pytest.skip("may not mount a disk here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def reporting_free_space(world: World) -> Iterator[None]:
    """Make the disk report more free space than it has."""
    plenty = SimpleNamespace(free=2**40)
    healthy = shutil.disk_usage
    with patch(
        "shutil.disk_usage", lambda path: plenty if "checkpoints" in str(path) else healthy(path)
    ):
        yield


@pytest.mark.parametrize("planted", [contextlib.nullcontext, reporting_free_space])
def test_a_full_disk_is_reported_in_bytes_and_the_last_checkpoint_is_intact(disk, planted):
    more = ("model.n_embd=32", "checkpoint.every=1", "checkpoint.keep=9", "MAX_STEPS=9")
    first, second = run(into_run(disk, *more, planted=planted), 2)
    assert first.error == second.error == "RunError"
    (line,) = (first.err + second.err).splitlines()
    steps = checkpoints_of(disk).steps()
    assert steps
    name = f"run/checkpoints/step-{steps[-1] + 1:08}"
    expected = (
        rf"(rank 1: )?{name} cannot be written: No space left on device \((this rank's file|"
        r"the checkpoint) takes [\d,]+ bytes, the disk has [\d,]+ free\); free some space, "
        "then resume the run"
        if planted is reporting_free_space
        else rf"{name} needs [\d,]+ bytes, but its disk has [\d,]+ free; free some space, .*"
    )
    assert re.fullmatch(rf"(rank \d: )?checkpoint of step {steps[-1] + 1}: {expected}", line)
    assert checkpoints_of(disk).leftovers() == []
    assert SavedCheckpoint(checkpoints_of(disk).folder(steps[-1])).verify() == []
    assert RunFolder(disk / "run").read_status()["state"] == "failed"


@contextlib.contextmanager
def filling_disk(world: World) -> Iterator[None]:
    """Fill the disk while a line of the log is being written, after its first page."""
    healthy, waste = JsonLinesLog.step, Path("waste")

    def step(self: JsonLinesLog, row: StepMetrics) -> None:
        if row.step == 3 and not waste.exists():
            with contextlib.suppress(OSError), waste.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            row = replace(row, remark="x" * 4096)
        healthy(self, row)

    with patch.object(JsonLinesLog, "step", step):
        yield


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_disk_that_fills_up_during_a_log_write_is_reported_and_checkpoints_are_intact(
    disk, tensorboard
):
    more = ("checkpoint.every=2", f"log.tensorboard={tensorboard}")
    (ended,) = run(into_run(disk, *more, planted=filling_disk))
    assert ended.error == "RunError"
    expected = (
        "run/log.jsonl cannot be written: No space left on device, 0 bytes are free there; "
        "free some space; --resume continues from the checkpoints, which are intact"
    )
    assert ended.err == expected + "\n"
    status = RunFolder(disk / "run").read_status()
    assert (status["state"], status["step"], status["message"]) == ("failed", 3, expected)
    assert status["ended"]
    assert SavedCheckpoint(checkpoints_of(disk).folder(2)).verify() == []
    (disk / "waste").unlink()
    (again,) = run(into_run(disk, *more, options=StartOptions(resume="run")))
    assert again.error == ""
    rows = [json.loads(line) for line in RunFolder(disk / "run").log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_a_run_folder_on_a_read_only_disk_is_rejected(disk):
    into_run(disk)
    subprocess.run(["mount", "-o", "remount,ro", "none", str(disk)], check=True)
    (ended,) = run(Job(folder=disk, options=StartOptions(output=Path("run"))))
    assert ended.error == "UserError"
    assert ended.err == "run cannot be created: Read-only file system; choose another --output\n"


def test_a_run_on_a_read_only_disk_resumes_only_into_another_output(disk, tmp_path):
    assert run(into_run(disk))[0].error == ""
    subprocess.run(["mount", "-o", "remount,ro", "none", str(disk)], check=True)
    there, elsewhere = str(disk / "run"), tmp_path / "elsewhere"
    refused, other = run_all(
        [
            into_run(elsewhere, "MAX_STEPS=5", options=options)
            for options in (
                StartOptions(resume=there),
                StartOptions(resume=there, output=Path("run")),
            )
        ]
    )
    assert refused[0].error == "UserError"
    assert refused[0].err == (
        f"{there} cannot be written: Read-only file system; choose another --output\n"
    )
    assert other[0].error == ""
    assert checkpoints_of(elsewhere).steps() == [5]
