"""When a run saves, which checkpoints it keeps, and what it does where it cannot."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from engine.checkpoint import manifest
from engine.checkpoint.background import BESIDE, Background, Copies
from engine.checkpoint.boxed import Boxed
from engine.checkpoint.shelf import Shelf
from engine.checkpoint.stored import Stored
from engine.checkpoint.ways import Asked
from engine.context import World
from engine.errors import Failed
from engine.run import Run
from engine.run_folder import RunFolder
from tests.support.checkpoints import Trainee
from tests.support.jobs import TINY, Ended, Job, run, run_all
from tests.support.training import Run as SmallRun
from tests.support.worlds import WorldError, run_world


def job(folder: Path, *overrides: str, **more: Any) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.py").write_text(TINY)
    more = {"asked": Asked(output=Path("run")), **more}
    return Job(folder=folder, overrides=overrides, **more)


def shelf(folder: Path) -> Shelf:
    return Shelf(RunFolder(folder / "run").checkpoints)


LOSSES = [5.0, 1.0, 4.0, float("nan"), 2.0, 3.0]


@contextlib.contextmanager
def validating(world: World) -> Iterator[None]:
    losses = iter(LOSSES)
    with patch.object(Run, "validate", lambda self: next(losses)):
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Ended]]:
    """Runs of six steps in one process: overrides -> its folder, and how it ended."""
    root = tmp_path_factory.mktemp("saver")
    wanted = {
        "never": ("checkpoint.every=None",),
        "steps": ("checkpoint.every=4", "checkpoint.keep=9"),
        "end": ("checkpoint.every=3", "checkpoint.keep=9"),
        "minutes": ("checkpoint.every=None", "checkpoint.minutes=1e-9", "checkpoint.keep=9"),
        "hours": ("checkpoint.every=None", "checkpoint.minutes=600.0"),
        "best": ("checkpoint.every=1", "checkpoint.keep=2", "eval.every=1"),
        "latest": (
            "checkpoint.every=1",
            "checkpoint.keep=2",
            "eval.every=1",
            "checkpoint.best=False",
        ),
        "asynchronous": ("checkpoint.every=1", "checkpoint.keep=4", "checkpoint.asynchronous=True"),
    }
    jobs = [
        job(root / name, "MAX_STEPS=6", *overrides, planted=validating)
        for name, overrides in wanted.items()
    ]
    ended = [of_ranks[0] for of_ranks in run_all(jobs)]
    assert [one.error for one in ended] == [""] * len(ended)
    return {name: (root / name, one) for name, one in zip(wanted, ended, strict=True)}


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("never", []),
        ("steps", [4, 6]),  # and at the end
        ("end", [3, 6]),  # once
        ("minutes", [1, 2, 3, 4, 5, 6]),
        ("hours", [6]),
        ("best", [2, 5, 6]),
        ("latest", [5, 6]),
        ("asynchronous", [3, 4, 5, 6]),
    ],
)
def test_when_it_saves_and_what_it_keeps(saved, name, steps):
    folder, ended = saved[name]
    assert shelf(folder).steps() == steps
    assert shelf(folder).leftovers() == []
    for step in steps:
        assert Stored(shelf(folder).folder(step)).problems() == []
    assert (f"{steps[-1]:08}" in ended.out) if steps else ("saved" not in ended.out)


def test_losses_that_are_no_numbers_are_never_the_best(saved):
    assert shelf(saved["best"][0]).losses() == {2: 1.0, 5: 2.0, 6: 3.0}


@contextlib.contextmanager
def told_to_stop(world: World) -> Iterator[None]:
    """The last rank gets SIGTERM during the second step."""
    healthy = Run.step

    def step(self: Run, step: int, **more: Any) -> Any:
        if step == 2 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return healthy(self, step, **more)

    with patch.object(Run, "step", step):
        yield


def test_a_signal_to_one_rank_saves_all_at_the_same_step(tmp_path):
    ended = run(job(tmp_path, "MAX_STEPS=50", "checkpoint.every=40", planted=told_to_stop), 2)
    assert [one.error for one in ended] == ["", ""]
    assert shelf(tmp_path).steps() == [2]
    assert Stored(shelf(tmp_path).folder(2)).problems() == []
    assert RunFolder(tmp_path / "run").read_status()["state"] == "interrupted"
    assert max(ended[0].batches) == 2


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
    first, second = run(job(disk, *more, planted=planted), 2)
    assert first.error == second.error == "Failed"
    (line,) = (first.err + second.err).splitlines()
    assert "checkpoint of step" in line
    if planted is hopeful:
        assert re.search(r"No space left on device; .* takes [\d,]+ bytes, and the disk has", line)
    else:
        assert "bytes, and its disk has" in line
    steps = shelf(disk).steps()
    assert steps
    assert shelf(disk).leftovers() == []
    assert Stored(shelf(disk).folder(steps[-1])).problems() == []
    assert RunFolder(disk / "run").read_status()["state"] == "failed"


def test_a_read_only_disk_is_refused(disk):
    job(disk)
    subprocess.run(["mount", "-o", "remount,ro", "none", str(disk)], check=True)
    (ended,) = run(Job(folder=disk, asked=Asked(output=Path("run"))))
    assert ended.error == "Refused"
    assert ended.err == "run: cannot be the run's folder: Read-only file system\n"


# Beside the training


def test_a_copy_stays_as_it_was():
    copies, tensor = Copies(), torch.arange(6.0).view(2, 3)
    for _ in range(2):  # the second time in memory that is there already
        boxed: Any = copies.of({"a": Boxed.whole(tensor), "b": Boxed.whole(tensor[0, 0])})
        held = boxed["a"].fetch(), boxed["b"].fetch()
        expected = tensor.clone()
        tensor += 1
        assert torch.equal(held[0], expected)
        assert torch.equal(held[1], expected[0, 0])


def test_one_task_at_a_time_and_its_error_is_raised_once():
    background, go, done = Background(), threading.Event(), list[int]()

    def first() -> None:
        go.wait(10)
        done.append(1)
        raise Failed("first")

    background.start(first)
    background.wait(0.01)
    assert done == []
    go.set()
    with pytest.raises(Failed, match="first"):
        background.start(lambda: done.append(2))
    background.wait()
    background.start(lambda: done.append(3))
    background.wait()
    assert done == [1, 3]


@contextlib.contextmanager
def failing_once(world: World) -> Iterator[None]:
    """No checkpoint after the first step's can be published."""
    healthy = Shelf.publish

    def publish(self: Shelf, step: int) -> None:
        if step > 1:
            raise OSError(5, "Input/output error", str(self.draft(step)))
        healthy(self, step)

    with patch.object(Shelf, "publish", publish):
        yield


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_save_that_fails_ends_the_run_and_leaves_the_one_before(tmp_path, asynchronous):
    more = ("checkpoint.every=1", f"checkpoint.asynchronous={asynchronous}", "MAX_STEPS=9")
    ended = run(job(tmp_path, *more, planted=failing_once), 2)
    assert [one.error for one in ended] == ["Failed", "Failed"]
    said = "".join(one.err for one in ended)
    assert said.count("checkpoint of step 2: ") == 1
    assert "step-00000002 cannot be written: Input/output error" in said
    assert shelf(tmp_path).steps() == [1]
    assert shelf(tmp_path).leftovers() == []


@contextlib.contextmanager
def failing_beside(world: World) -> Iterator[None]:
    """The same, and the next step waits until that is so."""
    healthy = Run.step

    def step(self: Run, step: int, **more: Any) -> Any:
        for thread in threading.enumerate():
            if thread.name == BESIDE:
                thread.join()
        return healthy(self, step, **more)

    with failing_once(world), patch.object(Run, "step", step):
        yield


def test_a_save_beside_the_training_that_fails_ends_the_run_before_the_next(tmp_path):
    more = ("checkpoint.every=3", "checkpoint.asynchronous=True", "MAX_STEPS=9")
    ended = run(job(tmp_path, *more, planted=failing_beside), 2)
    assert [one.error for one in ended] == ["Failed", "Failed"]
    said = "".join(one.err for one in ended)
    assert said.count("checkpoint of step 3: ") == said.count("\n") == 1
    assert [max(one.batches) for one in ended] == [5, 5], "the next would be after step 6"
    assert shelf(tmp_path).leftovers() == []


@contextlib.contextmanager
def watched(world: World) -> Iterator[None]:
    """What happens to files of checkpoints, in its order, goes into a file."""
    seen: list[tuple[str, str]] = []
    sync, rename, remove, digest = os.fsync, Path.rename, shutil.rmtree, manifest.digest_of

    def see(what: str, path: Path) -> None:
        if "checkpoints" in path.parts:
            seen.append((what, "/".join(path.parts[path.parts.index("checkpoints") :])))

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
    more = ("MAX_STEPS=2", "checkpoint.every=1", "checkpoint.keep=1")
    (ended,) = run(job(tmp_path, *more, f"checkpoint.asynchronous={asynchronous}", planted=watched))
    assert ended.error == ""
    seen = [(what, path) for what, path in json.loads((tmp_path / "seen.json").read_text())]
    seen = seen[seen.index(("sync", "checkpoints")) + 1 :]  # those of the second one
    name, draft = "checkpoints/step-00000002", "checkpoints/step-00000002.tmp"
    files = {file.name for file in shelf(tmp_path).folder(2).iterdir()}
    assert {".metadata", "manifest.json", "training.json", "__0_0.distcp"} == files
    for file in files:
        synced = f"{file}.tmp" if file == ".metadata" else file  # as DCP writes it
        assert seen.index(("sync", f"{draft}/{synced}")) < seen.index(
            ("read back", f"{draft}/{file}")
        )
    assert seen[-5:] == [
        ("sync", draft),
        ("rename", name),
        ("sync", "checkpoints"),
        ("rename", "checkpoints/step-00000001.tmp"),
        ("remove", "checkpoints/step-00000001.tmp"),
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
    with patch("os.fsync", flipping), pytest.raises(Failed) as failure:
        trainee.save(Shelf(path), 1)
    return str(failure.value)


def test_what_the_disk_made_of_it_is_read_back(tmp_path):
    said = {*run_world(2, save_on_a_bad_disk, tmp_path)}
    (one,) = said
    assert one.startswith("checkpoint of step 1: rank 1: ")
    assert one.endswith("__1_0.distcp was changed: its SHA-256 differs right after it was written")
    assert Shelf(tmp_path).steps() == []
    assert Shelf(tmp_path).leftovers() == []


def save_twice(rank: int, size: int, path: Path) -> None:
    trainee = Trainee.make(SmallRun(), rank)
    trainee.train([1])
    trainee.save(Shelf(path), 1)
    trainee.train([2])
    trainee.save(Shelf(path), 1)


def test_no_checkpoint_is_written_over(tmp_path):
    with pytest.raises(WorldError, match="is there already, and no checkpoint is written over"):
        run_world(1, save_twice, tmp_path)
    assert Stored(Shelf(tmp_path).folder(1)).problems() == []
    assert Shelf(tmp_path).leftovers() == []
