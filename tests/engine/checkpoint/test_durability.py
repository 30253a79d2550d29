"""What is on the disk, in which order it came there, and disks that will not."""

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
from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.errors import RunError
from engine.runs.folder import RunFolder
from engine.runs.metrics import JsonLinesLog, StepMetrics
from engine.runs.resume_candidates import StartOptions
from engine.world.world import World
from tests.support.checkpoints import Trainee
from tests.support.jobs import Job, checkpoints_of, into_run, run, run_all
from tests.support.training import TrainingCase as SmallRun
from tests.support.worlds import WorldError, run_world


@contextlib.contextmanager
def watched(world: World) -> Iterator[None]:
    """What happens to checkpoints and the folders they are in goes into a file."""
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
def test_all_is_synced_and_read_back_before_it_has_a_name_and_then_others_go(
    tmp_path, asynchronous
):
    wanted = ("MAX_STEPS=2", "checkpoint.every=1", "checkpoint.keep=1")
    more = f"checkpoint.asynchronous={asynchronous}"
    (ended,) = run(into_run(tmp_path, *wanted, more, planted=watched))
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


def save_on_a_bad_disk(rank: int, size: int, path: Path) -> str:
    """A bit of every file of the last rank flips on its way to the disk."""
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


def test_what_the_disk_made_of_it_is_read_back(tmp_path):
    said = {*run_world(2, save_on_a_bad_disk, tmp_path)}
    (one,) = said
    assert one.startswith("checkpoint of step 1: rank 1: ")
    assert one.endswith("__1_0.distcp was changed: its SHA-256 differs right after it was written")
    assert CheckpointDirectory(tmp_path).steps() == []
    assert CheckpointDirectory(tmp_path).leftovers() == []


def save_apart(rank: int, size: int, path: Path) -> list[str]:
    """Each rank into a folder of its own, as on machines that share none. In the second, rank 1
    has a folder of that name, too."""
    trainee, said = Trainee.make(SmallRun(data=2), rank), []
    for step in (1, 2):
        shelf = CheckpointDirectory(path / str(rank))
        if step == 2 and rank == 1:
            shelf.temporary(step).mkdir(parents=True)
        with pytest.raises(RunError) as failure:
            trainee.save(shelf, step)
        said.append(str(failure.value))
    return said


def test_ranks_that_see_different_folders_are_told(tmp_path):
    said, also = run_world(2, save_apart, tmp_path)
    assert said == also
    assert said == [
        f"checkpoint of step 1: rank 1: {tmp_path}/1/step-00000001.tmp does not exist: "
        "all ranks must use one shared file system",
        f"checkpoint of step 2: {tmp_path}/0/step-00000002.tmp/__1_0.distcp is not visible on "
        "rank 0: "
        "all ranks must use one shared file system",
    ]
    assert list((tmp_path / "0").iterdir()) == []


def save_where_there_is_no_space(rank: int, size: int, path: Path) -> str:
    """And then where there is."""
    trainee = Trainee.make(SmallRun(), rank)
    trainee.train([1])
    with (
        patch("shutil.disk_usage", lambda path: SimpleNamespace(free=1234)),
        pytest.raises(RunError) as failure,
    ):
        trainee.save(CheckpointDirectory(path), 1)
    trainee.save(CheckpointDirectory(path), 1)
    return str(failure.value)


def test_the_bytes_it_names_are_enough_and_not_many_more(tmp_path):
    (said,) = run_world(1, save_where_there_is_no_space, tmp_path)
    told = re.fullmatch(
        f"checkpoint of step 1: {tmp_path}/step-00000001 needs ([0-9,]+) bytes, and its disk has "
        "1,234 free",
        said,
    )
    assert told is not None, said
    needed = int(told[1].replace(",", ""))
    taken = sum(path.stat().st_size for path in CheckpointDirectory(tmp_path).folder(1).iterdir())
    assert taken <= needed <= 2 * taken


def save_twice(rank: int, size: int, path: Path) -> None:
    trainee = Trainee.make(SmallRun(), rank)
    trainee.train([1])
    trainee.save(CheckpointDirectory(path), 1)
    trainee.train([2])
    trainee.save(CheckpointDirectory(path), 1)


def test_no_checkpoint_is_written_over(tmp_path):
    with pytest.raises(WorldError, match="already exists; checkpoints are never overwritten"):
        run_world(1, save_twice, tmp_path)
    assert SavedCheckpoint(CheckpointDirectory(tmp_path).folder(1)).verify() == []
    assert CheckpointDirectory(tmp_path).leftovers() == []


# Disks that will not. Linux, as root.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    size = ["-o", "size=1800k"]
    made = subprocess.run(["mount", "-t", "tmpfs", *size, "none", str(path)], capture_output=True)
    if made.returncode:
        pytest.skip("may not mount a disk here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def hopeful(world: World) -> Iterator[None]:
    """The disk seems to have space until it is written to."""
    plenty = SimpleNamespace(free=2**40)
    healthy = shutil.disk_usage
    with patch(
        "shutil.disk_usage", lambda path: plenty if "checkpoints" in str(path) else healthy(path)
    ):
        yield


@pytest.mark.parametrize("planted", [contextlib.nullcontext, hopeful])
def test_a_full_disk_is_told_in_bytes_and_the_last_checkpoint_stays(disk, planted):
    more = ("model.n_embd=32", "checkpoint.every=1", "checkpoint.keep=9", "MAX_STEPS=9")
    first, second = run(into_run(disk, *more, planted=planted), 2)
    assert first.error == second.error == "RunError"
    (line,) = (first.err + second.err).splitlines()
    steps = checkpoints_of(disk).steps()
    assert steps
    name = f"run/checkpoints/step-{steps[-1] + 1:08}"
    told = (
        rf"(rank 1: )?{name} cannot be written: No space left on device; (this rank's file|"
        r"the checkpoint) takes [\d,]+ bytes, and the disk has [\d,]+ free"
        if planted is hopeful
        else rf"{name} needs [\d,]+ bytes, and its disk has [\d,]+ free"
    )
    assert re.fullmatch(rf"(rank \d: )?checkpoint of step {steps[-1] + 1}: {told}", line)
    assert checkpoints_of(disk).leftovers() == []
    assert SavedCheckpoint(checkpoints_of(disk).folder(steps[-1])).verify() == []
    assert RunFolder(disk / "run").read_status()["state"] == "failed"


@contextlib.contextmanager
def filled(world: World) -> Iterator[None]:
    """Another program fills the disk while a row of the log is on its way, between two pages."""
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
def test_a_disk_that_is_full_as_the_log_is_written_is_told_and_saved_steps_stay(disk, tensorboard):
    more = ("checkpoint.every=2", f"log.tensorboard={tensorboard}")
    (ended,) = run(into_run(disk, *more, planted=filled))
    assert ended.error == "RunError"
    told = (
        "run/log.jsonl cannot be written: No space left on device; 0 bytes are free there. "
        "Saved checkpoints are intact: free some space, then --resume continues"
    )
    assert ended.err == told + "\n"
    status = RunFolder(disk / "run").read_status()
    assert (status["state"], status["step"], status["message"]) == ("failed", 3, told)
    assert status["ended"]
    assert SavedCheckpoint(checkpoints_of(disk).folder(2)).verify() == []
    (disk / "waste").unlink()
    (again,) = run(into_run(disk, *more, options=StartOptions(resume="run")))
    assert again.error == ""
    rows = [json.loads(line) for line in RunFolder(disk / "run").log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_a_read_only_disk_is_refused(disk):
    into_run(disk)
    subprocess.run(["mount", "-o", "remount,ro", "none", str(disk)], check=True)
    (ended,) = run(Job(folder=disk, options=StartOptions(output=Path("run"))))
    assert ended.error == "UserError"
    assert ended.err == "run cannot be created: Read-only file system\n"


def test_a_run_on_a_read_only_disk_goes_on_elsewhere_only(disk, tmp_path):
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
    assert refused[0].err == f"{there} cannot be written: Read-only file system\n"
    assert other[0].error == ""
    assert checkpoints_of(elsewhere).steps() == [5]
