"""Atomic writes of files and folders: complete and fsynced, or unchanged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.errors import RunError, UserError
from engine.files.atomic_write import (
    atomic_file,
    atomic_path,
    remove_temporaries,
    rename_durably,
    write_atomically,
)


@pytest.fixture
def disk_events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Each fsync and rename, with the name of the file or folder, in order."""
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def logged_fsync(handle: int) -> None:
        events.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def logged_rename(path: Path, target: Path) -> Path:
        events.append(("rename", target.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "rename", logged_rename)
    return events


def test_content_is_fsynced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, disk_events: list[tuple[str, str]]
) -> None:
    temporary, folder = f".x.{os.getpid()}.tmp", tmp_path.name
    durable = [("fsync", temporary), ("rename", "x"), ("fsync", folder)]
    write_atomically(tmp_path / "x", "ü")
    assert disk_events == durable
    assert (tmp_path / "x").read_bytes() == "ü".encode()
    disk_events.clear()
    with atomic_path(tmp_path / "x", replace=True) as new:
        new.write_text("2")
    assert disk_events == durable
    disk_events.clear()
    with atomic_path(tmp_path / "y") as new:
        new.mkdir()
        (new / "file").write_text("3")
    temporary = f".y.{os.getpid()}.tmp"
    assert disk_events == [
        ("fsync", "file"),
        ("fsync", temporary),
        ("rename", "y"),
        ("fsync", folder),
    ]


def test_a_folder_that_is_not_empty_is_not_renamed_over(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        rename_durably(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "old"


def test_an_error_in_the_block_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.writelines([b"half of it", None])  # type: ignore[list-item]
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_failed_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    write_atomically(path, "old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def die(path: Path) -> None:
    """Raise after a part has been written."""
    path.write_text("half of it")
    raise ZeroDivisionError


def die_within(path: Path) -> None:
    path.mkdir()
    die(path / "file")


def test_a_temporary_is_renamed_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x"
    with atomic_path(path) as new:
        new.write_text("1")
        assert not path.exists()
    assert path.read_text() == "1"
    with (
        pytest.raises(UserError, match=r"x exists already; name another --out$"),
        atomic_path(path),
    ):
        raise AssertionError
    with pytest.raises(ZeroDivisionError), atomic_path(path, replace=True) as new:
        die(new)
    assert path.read_text() == "1"
    with atomic_path(path, replace=True) as new:
        new.write_text("3")
    assert path.read_text() == "3"
    assert [file.name for file in path.parent.iterdir()] == ["x"]


def write_both(temporary: Path, path: Path) -> None:
    temporary.write_text("1")
    path.write_text("2")


def test_a_file_made_by_another_process_in_the_meantime_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(UserError, match="x exists already"), atomic_path(path) as new:
        write_both(new, path)
    assert path.read_text() == "2"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_temporaries_of_killed_processes_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "[x].y"
    for name in (".[x].y.17.tmp", ".x.y.17.tmp", "[x].y"):
        (tmp_path / name).touch()
    remove_temporaries(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".x.y.17.tmp", "[x].y"]


def test_a_folder_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for text in "12":
        with atomic_path(path, replace=True) as new:
            new.mkdir()
            (new / text).write_text(text)
        assert [file.name for file in path.iterdir()] == [text]
    with pytest.raises(ZeroDivisionError), atomic_path(path, replace=True) as new:
        die_within(new)
    assert [file.name for file in path.iterdir()] == ["2"]
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_disk_without_the_required_bytes_is_rejected_before_writing(tmp_path: Path) -> None:
    needs = 2**60
    with (
        pytest.raises(
            RunError, match=rf"x needs {needs:,} bytes, but its disk has [\d,]+ free; free"
        ),
        atomic_path(tmp_path / "x", required_bytes=needs),
    ):
        raise AssertionError


def test_a_path_that_cannot_be_created_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunError, match=r"file/x cannot be written: (File exists|Not a directory)$"),
        atomic_path(tmp_path / "file" / "x"),
    ):
        raise AssertionError
