"""Runs on failing disks: one line of error, intact checkpoints, no files left."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from engine.checkpoint.load import SavedCheckpoint
from engine.nvme.direct_io import DirectFile
from engine.runs.start_candidates import StartOptions
from engine.training.trainer import Trainer
from engine.world.world import World
from tests.engine.nvme.support import mounted
from tests.support.jobs import TINY, Ended, Job, run

STEPS = ("MAX_STEPS=6", "checkpoint.every=2")


def job(folder: Path, disk: Path, *overrides: str, **more: Any) -> Job:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.py").write_text(TINY)
    nvme = (f"zero.nvme_path={str(disk)!r}", "zero.nvme_buffer=1048576")
    ours = ("zero.stage=3", "zero.offload='nvme'", *nvme, *STEPS, *overrides)
    return Job(folder=folder, overrides=ours, **more)


@dataclass(frozen=True)
class OnRank1:
    """A fault of the disk before a step, on one rank."""

    step: int
    worst: Callable[..., None]
    arguments: tuple[Any, ...] = ()

    @contextmanager
    def __call__(self, world: World) -> Iterator[None]:
        healthy = Trainer.step

        def step(run: Trainer, step: int, **more: Any) -> Any:
            if step == self.step and world.rank == 1:
                self.worst(*self.arguments)
            return healthy(run, step, **more)

        with patch.object(Trainer, "step", step):
            yield


def remove_folder(disk: Path) -> None:
    shutil.rmtree(next(disk.glob("*-rank1")))


def fail_to_write(number: int) -> None:
    def write(self: DirectFile, offset: int, memory: memoryview) -> None:
        raise OSError(number, os.strerror(number))

    DirectFile._write = write  # type: ignore[method-assign]


def assert_failed_in_one_line(ended: list[Ended], message: str) -> None:
    assert {one.error for one in ended} == {"RunError"}
    lines = [line for one in ended for line in one.err.splitlines() if "warning" not in line]
    assert len(lines) == 1, lines
    assert message in lines[0]


def assert_goes_on(folder: Path, disk: Path, *overrides: str) -> None:
    """Resume from the last checkpoint, which must be intact."""
    (run_folder,) = (folder / "runs").iterdir()
    stored = [SavedCheckpoint(path) for path in sorted((run_folder / "checkpoints").iterdir())]
    assert [one.path.name for one in stored] == ["step-00000002", "step-00000004"]
    assert [one.verify() for one in stored] == [[], []]
    ended = run(job(folder, disk, *overrides, options=StartOptions(resume="auto")), ranks=2)
    assert [one.error for one in ended] == ["", ""]
    assert "resuming from" in ended[0].out
    assert list(disk.iterdir()) == []


def test_a_removed_folder_fails_the_run_in_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    planted = OnRank1(5, remove_folder, (disk,))
    ended = run(job(tmp_path, disk, planted=planted), ranks=2)
    assert_failed_in_one_line(
        ended, "-rank1/states was removed while the run used it; resume the run"
    )
    assert_goes_on(tmp_path, disk)


def test_a_failing_disk_with_weights_fails_the_run_in_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    weights = ("zero.offload_params='nvme'", "zero.nvme_store='threads'")
    planted = OnRank1(5, fail_to_write, (errno.EROFS,))
    ended = run(job(tmp_path, disk, *weights, planted=planted), ranks=2)
    assert_failed_in_one_line(ended, "write failed: Read-only file system; check the disk")
    assert_goes_on(tmp_path, disk, *weights)


def test_a_full_disk_is_rejected_before_the_first_step(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=64k") as disk:
        ended = run(job(tmp_path, disk, "model.n_embd=64"), ranks=2)
        assert [one.error for one in ended] == ["UserError", "UserError"]
        (line,) = [line for one in ended for line in one.err.splitlines() if "offloads" in line]
        assert "zero.nvme_path=" in line
        assert f"{disk.name}': a rank offloads" in line
        assert "64 KiB are free, and 2 ranks of this machine share it" in line
        assert list(disk.iterdir()) == []
    assert not (tmp_path / "runs").exists()


def test_the_folder_of_a_killed_run_is_removed_by_the_next_run(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    assert run(job(tmp_path, disk, dies=3), ranks=2) == []
    assert len(list(disk.iterdir())) == 2
    ended = run(job(tmp_path, disk, options=StartOptions(resume="auto")), ranks=2)
    assert [one.error for one in ended] == ["", ""]
    assert list(disk.iterdir()) == []
