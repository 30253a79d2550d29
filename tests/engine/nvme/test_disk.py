"""The folder of a rank: locking, removal, and disks that cannot be used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import RunError, UserError
from engine.nvme.disk import LOCK, open_disk
from tests.engine.nvme.support import mounted

MIB = 2**20

LIVE = """
import sys
from pathlib import Path
from engine.nvme.disk import open_disk
with open_disk(Path(sys.argv[1]), "job-rank0") as disk:
    disk.reserve("states", 2**20)
    print(disk.folder.name, flush=True)
    input()
"""


def start(root: Path) -> tuple[subprocess.Popen[str], str]:
    """Start another job at the path; return its process and the name of its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", LIVE, str(root)],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_the_folder_is_created_and_removed_at_the_end(tmp_path: Path) -> None:
    with open_disk(tmp_path, "job 7/rank0") as disk:
        assert [path.name for path in tmp_path.iterdir()] == ["cuboid-job_7_rank0"]
        assert disk.reserve("states", 5 * MIB).stat().st_blocks * 512 >= 5 * MIB
        disk.check()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), open_disk(tmp_path, "job"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_jobs_with_equal_names_get_different_folders(tmp_path: Path) -> None:
    with open_disk(tmp_path, "job") as one, open_disk(tmp_path, "job") as two:
        assert one.folder != two.folder
        one.reserve("states", 10)
        two.reserve("states", 20)
    assert list(tmp_path.iterdir()) == []


def test_only_the_folder_of_a_killed_job_is_removed(tmp_path: Path) -> None:
    killed, left = start(tmp_path)
    alive, used = start(tmp_path)
    try:
        assert {left, used} == {"cuboid-job-rank0", "cuboid-job-rank0-2"}
        killed.kill()
        killed.wait()
        assert (tmp_path / left / "states").stat().st_size == MIB
        with open_disk(tmp_path, "other"):
            names = {path.name for path in tmp_path.iterdir()}
            assert names == {used, "cuboid-other"}
            assert (tmp_path / used / "states").stat().st_size == MIB
    finally:
        for process in (killed, alive):
            process.send_signal(signal.SIGKILL)
            process.communicate()


def test_folders_without_a_lock_file_are_not_removed(tmp_path: Path) -> None:
    (tmp_path / "cuboid-notes").mkdir()
    (tmp_path / "cuboid-file").write_text("mine")
    with open_disk(tmp_path, "file") as disk:
        assert disk.folder.name == "cuboid-file-2"
    assert {path.name for path in tmp_path.iterdir()} == {"cuboid-notes", "cuboid-file"}


def test_a_new_folder_under_the_name_of_a_dead_one_is_not_removed(tmp_path: Path) -> None:
    """Before the lock is taken, another run may remove the dead folder and a live run take its
    name. The lock that is taken then is that of the removed file."""
    dead = tmp_path / "cuboid-job"
    dead.mkdir()
    (dead / LOCK).touch()
    opened, real = list[int](), os.open

    def slow(path: Any, *rest: Any, **more: Any) -> int:
        descriptor = real(path, *rest, **more)
        if not opened and path == dead / LOCK:
            opened.append(descriptor)
            (dead / LOCK).unlink()
            dead.rmdir()
            dead.mkdir()
            (dead / LOCK).touch()
            (dead / "states").write_text("alive")
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", slow)
        with open_disk(tmp_path, "other"):
            pass
    assert opened
    assert (dead / "states").read_text() == "alive"


def test_a_path_that_is_no_folder_is_rejected(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path / "file"):
        if path.name == "file":
            path.touch()
        setting = f"gpt.py:9: zero.nvme_path={str(path)!r}"
        with pytest.raises(UserError) as refusal, open_disk(path, "job", setting=setting):
            pass
        message = f"{setting} is not a folder on this machine; create it on the NVMe disk"
        assert str(refusal.value) == message


def test_a_read_only_disk_is_rejected(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as root:
        with pytest.raises(UserError) as refusal, open_disk(root, "job", setting="zero.nvme_path"):
            pass
        reason = "zero.nvme_path: cannot create a folder in it: Read-only file system"
        assert str(refusal.value) == reason


def test_a_disk_that_is_too_small_is_rejected_at_the_reservation(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m") as root:
        with (
            pytest.raises(UserError) as refusal,
            open_disk(root, "job", ranks=2, setting="zero.nvme_path") as disk,
        ):
            disk.reserve("states", 5 * MIB + MIB // 2)
        assert str(refusal.value) == (
            "zero.nvme_path: a rank offloads 5.5 MiB and 4 MiB are free, and 2 ranks of this "
            "machine share it"
        )
        assert list(root.iterdir()) == []
        with open_disk(root, "job") as disk:
            disk.reserve("states", 3 * MIB)


def test_a_removed_file_fails_the_check(tmp_path: Path) -> None:
    with open_disk(tmp_path, "job", setting="zero.nvme_path") as disk:
        path = disk.reserve("states", 10)
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(RunError) as failure:
            disk.check()
        assert str(failure.value) == (
            f"zero.nvme_path: {path} was removed while the run used it; resume the run from its "
            "last checkpoint"
        )
