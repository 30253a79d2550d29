"""Token files are written atomically, by concurrent processes and when these are killed."""

import fcntl
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.data.token_files import token_cache
from engine.data.token_files.token_cache import Write, load_or_build, read
from engine.errors import UserError
from tests.engine.data.support import IDS, build_backwards, build_ids

SPAWN = multiprocessing.get_context("spawn")


def _fail(write: Write) -> tuple[str, dict[str, str]]:
    write(IDS)
    raise KeyboardInterrupt


def _never(write: Write) -> tuple[str, dict[str, str]]:
    raise AssertionError("it was there")


def test_written_tokens_are_memory_mapped(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.tokens"
    for build in (build_ids, _never):
        found = load_or_build(path, build)
        assert isinstance(found.ids, np.memmap)
        assert not found.ids.flags.writeable
        assert found.ids.dtype == np.uint16
        assert found.ids.tolist() == IDS.tolist()
        assert found.about == {"said": "ü"}
    assert np.memmap(path, "<u2", "r")[:5000].tolist() == IDS.tolist()


def test_failed_build_leaves_no_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tokens"
    with pytest.raises(KeyboardInterrupt):
        load_or_build(path, _fail)
    assert [p.name for p in tmp_path.iterdir()] == ["a.lock"]
    assert load_or_build(path, build_ids).ids.tolist() == IDS.tolist()


@pytest.mark.parametrize("keep", [0, 1, 47, 48, 5000, 9999, 10000, 10001, -49, -48, -1])
def test_truncated_file_is_rebuilt(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.tokens"
    load_or_build(path, build_ids)
    path.write_bytes(path.read_bytes()[:keep])
    assert read(path) is None
    assert load_or_build(path, build_ids).ids.tolist() == IDS.tolist()


def test_any_flipped_bit_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.tokens"
    load_or_build(path, build_ids)
    good = path.read_bytes()
    rng = random.Random(1)
    tail = range(len(IDS) * 2, len(good))
    for place in [*tail, 0, *rng.sample(range(len(IDS) * 2), 20)]:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        assert read(path) is None, f"byte {place}"
    path.write_bytes(good + b"\0")
    assert read(path) is None
    assert load_or_build(path, build_ids).ids.tolist() == IDS.tolist()


def test_reader_keeps_a_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tokens"
    first = load_or_build(path, build_ids)
    token_cache._write(path, build_backwards)
    assert first.ids.tolist() == IDS.tolist()
    assert load_or_build(path, _never).ids.tolist() == IDS[::-1].tolist()


def test_old_temporary_files_of_killed_builders_are_deleted(tmp_path: Path) -> None:
    old, young, other = (tmp_path / n for n in ("a.1.part", "a.2.part", "b.1.part"))
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (1, 1))
    load_or_build(tmp_path / "a.tokens", build_ids)
    assert not old.exists()
    assert young.exists()
    assert other.exists()


def _slow(log: Path, seconds: float) -> token_cache.Build:
    def build(write: Write) -> tuple[str, dict[str, str]]:
        with log.open("a") as handle:
            handle.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return build_ids(write)

    return build


def _come(path: Path, log: Path, seconds: float, start: Barrier, results: Any) -> None:
    start.wait()
    found = load_or_build(path, _slow(log, seconds))
    results.put((int(found.ids.sum()), found.about["said"]))


def _come_without_locks(
    path: Path, log: Path, seconds: float, start: Barrier, results: Any
) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no locks here")

    fcntl.flock = refuse
    _come(path, log, seconds, start, results)


@pytest.mark.parametrize(
    ("come", "most"), [(_come, 1), (_come_without_locks, 4)], ids=["locks", "no locks"]
)
@pytest.mark.parametrize("damaged", [False, True], ids=["missing", "damaged"])
def test_concurrent_processes_build_one_file(
    tmp_path: Path, come: Callable[..., None], most: int, damaged: bool
) -> None:
    """One process builds if there are file locks; without locks, all end with the same file."""
    path, log = tmp_path / "a.tokens", tmp_path / "log"
    if damaged:
        path.write_bytes(b"damaged")
    start, results = SPAWN.Barrier(4), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=come, args=(path, log, 0.5, start, results), daemon=True)
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    got = [results.get() for _ in processes]
    assert got == [(int(IDS.sum(dtype=int)), "ü")] * 4
    assert 1 <= len(log.read_text().splitlines()) <= most
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.lock", "a.tokens", "log"]


def test_waiting_process_builds_after_the_builder_is_killed(tmp_path: Path) -> None:
    path, log = tmp_path / "a.tokens", tmp_path / "log"
    alone, results = SPAWN.Barrier(1), SPAWN.Queue()
    args = (path, log, 3600.0, alone, results)
    first = SPAWN.Process(target=_come, args=args, daemon=True)
    first.start()
    while not (log.exists() and log.read_text().endswith("\n")):
        time.sleep(0.01)
    second = SPAWN.Process(target=_come, args=(path, log, 0.0, alone, results), daemon=True)
    second.start()
    time.sleep(0.5)
    assert not path.exists()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    second.join()
    assert second.exitcode == 0
    assert results.get() == (int(IDS.sum(dtype=int)), "ü")
    first.join()
    assert len(log.read_text().splitlines()) == 2


def test_unusable_folder_is_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data.cache: .*/file/a.tokens cannot be used: "):
        load_or_build(tmp_path / "file" / "a.tokens", build_ids)


def test_full_disk_is_reported_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be used: No space left on device"):
        load_or_build(tmp_path / "a.tokens", build_ids)
    assert [p.name for p in tmp_path.iterdir()] == ["a.lock"]
