"""Data is hashed once until its file changes, tokens once per start of a run, by one process."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.data.input_files import data_file, stat_cache
from engine.data.input_files.data_file import DataFile
from engine.data.source import open_corpus
from engine.data.token_files import token_cache
from engine.data.token_files.token_cache import load_or_build
from tests.engine.data.support import IDS, Ask, build_backwards, build_ids

SPAWN = multiprocessing.get_context("spawn")
SIZE = 2 << 20


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return how many bytes were hashed since the last call, not counting records."""
    return count_hashed(monkeypatch.setattr)


def count_hashed(put: Callable[[Any, str, Any], None]) -> Callable[[], int]:
    count = 0
    sha256 = hashlib.sha256

    class Counted:
        def __init__(self, data: bytes | memoryview = b"") -> None:
            self._hash = sha256()
            self.update(data)

        def update(self, data: bytes | memoryview) -> None:
            nonlocal count
            size = memoryview(data).nbytes
            count += size if size > 2000 else 0
            self._hash.update(data)

        def hexdigest(self) -> str:
            return self._hash.hexdigest()

        def digest(self) -> bytes:
            return self._hash.digest()

    def since() -> int:
        nonlocal count
        found, count = count, 0
        return found

    for module in (token_cache, data_file):
        put(module.hashlib, "sha256", Counted)
    return since


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data file that was last changed long ago."""
    monkeypatch.setattr(stat_cache, "SETTLED_SECONDS", 0.0)
    path = tmp_path / "data.txt"
    path.write_bytes(b"some text" * (SIZE // 9))
    return path


def next_tick(path: Path) -> None:
    """Wait until a change of ``path`` would change its times: the file system's clock has a
    resolution of some milliseconds, or of one or two seconds."""
    probe = path.with_name("clock")
    while True:
        probe.touch()
        now, then = probe.stat(), path.stat()
        if now.st_ctime_ns > then.st_ctime_ns and now.st_mtime_ns > then.st_mtime_ns:
            break
        time.sleep(0.001)
    probe.unlink()


def digest_of(path: Path, records: Path) -> str:
    found = DataFile(path, records=records).digest
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_unchanged_data_is_hashed_once(
    tmp_path: Path, data: Path, hashed: Callable[[], int]
) -> None:
    def bytes_for(path: Path) -> int:
        hashed()
        DataFile(path, records=tmp_path / "digests").digest  # noqa: B018
        return hashed()

    size = data.stat().st_size
    assert [bytes_for(data) for _ in range(3)] == [size, 0, 0]
    small = tmp_path / "small"
    small.write_bytes(b"some text" * 1000)
    assert [bytes_for(small) for _ in range(2)] == [9000, 9000]
    assert len(list((tmp_path / "digests").glob("*.json"))) == 1


def overwrite(path: Path) -> None:
    """Replace the content by another one of the same size and modification time."""
    before = path.stat()
    with path.open("r+b") as handle:
        handle.write(b"S")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def put_another(path: Path) -> None:
    before = path.stat()
    other = path.with_suffix(".new")
    other.write_bytes(b"S" + path.read_bytes()[1:])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def append(path: Path) -> None:
    with path.open("ab") as handle:
        handle.write(b"more")


@pytest.mark.parametrize("change", [overwrite, put_another, append])
def test_changed_file_is_hashed_again(
    tmp_path: Path, data: Path, change: Callable[[Path], None]
) -> None:
    records = tmp_path / "digests"
    before = digest_of(data, records)
    assert digest_of(data, records) == before
    next_tick(data)
    change(data)
    assert digest_of(data, records) != before


def test_recently_changed_file_is_not_recorded(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stat_cache, "SETTLED_SECONDS", 3600.0)
    digest_of(data, tmp_path / "digests")
    assert not list((tmp_path / "digests").glob("*.json"))


def test_corrupt_record_is_not_used(tmp_path: Path, data: Path) -> None:
    before = digest_of(data, tmp_path / "digests")
    (record,) = (tmp_path / "digests").glob("*.json")
    good, rng = record.read_bytes(), random.Random(1)
    for place in rng.sample(range(len(good)), 12):
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(7)
        record.write_bytes(bad)
        assert digest_of(data, tmp_path / "digests") == before
    for other in (b"", good[:50], json.dumps([]).encode()):
        record.write_bytes(other)
        assert digest_of(data, tmp_path / "digests") == before


def test_unwritable_cache_hashes_every_time(data: Path, hashed: Callable[[], int]) -> None:
    for _ in range(2):
        DataFile(data, records=Path("/proc/none")).digest  # noqa: B018
        assert hashed() == data.stat().st_size


def test_file_without_a_readable_stat_is_not_recorded(tmp_path: Path) -> None:
    """A network file system may fail temporarily."""
    records = tmp_path / "digests"
    assert stat_cache.cached_by_stat(tmp_path / "none", records, lambda: {"size": 1}) == {"size": 1}
    assert not list(records.glob("*.json"))


def test_tokens_are_verified_once_per_start(tmp_path: Path, hashed: Callable[[], int]) -> None:
    path, size = tmp_path / "a.tokens", IDS.nbytes

    def bytes_for(start: str | None) -> int:
        hashed()
        assert load_or_build(path, build_ids, start=start).ids.tolist() == IDS.tolist()
        return hashed()

    load_or_build(path, build_ids)
    assert [bytes_for("one") for _ in range(4)] == [size, 0, 0, 0]
    assert [bytes_for("two") for _ in range(2)] == [size, 0]
    assert bytes_for("one") == 0  # ranks of both may come in any order
    assert [bytes_for(None) for _ in range(2)] == [size, size]


@pytest.mark.parametrize("damage", ["in place", "cut", "replaced"])
def test_corrupt_tokens_are_detected_by_the_same_start_and_the_next(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "a.tokens"
    load_or_build(path, build_ids, start="one")
    next_tick(path)
    good = path.read_bytes()
    for start in ("one", "two"):
        bad = bytearray(good)
        bad[100] ^= 4
        if damage == "replaced":
            path.unlink()
        path.write_bytes(bad[:-60] if damage == "cut" else bad)
        assert load_or_build(path, build_ids, start=start).ids.tolist() == IDS.tolist()
        assert path.read_bytes() == good
        next_tick(path)


def test_silent_bit_rot_is_detected_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk returns other bytes and the file's stat is unchanged."""
    path = tmp_path / "a.tokens"
    load_or_build(path, build_ids, start="one")
    stamp = stat_cache.Stamp.of_file(path)
    bad = bytearray(path.read_bytes())
    bad[100] ^= 4
    path.write_bytes(bad)
    monkeypatch.setattr(stat_cache.Stamp, "of_file", classmethod(lambda cls, path: stamp))
    assert load_or_build(path, build_ids, start="two").ids.tolist() == IDS.tolist()


def test_rebuilt_tokens_are_verified_again(tmp_path: Path, hashed: Callable[[], int]) -> None:
    path = tmp_path / "a.tokens"
    load_or_build(path, build_ids, start="one")
    token_cache._write(path, build_backwards)
    hashed()
    assert load_or_build(path, build_ids, start="one").ids.tolist() == IDS[::-1].tolist()
    assert hashed() == IDS.nbytes


def _open(request: Any, start: Any, results: Any, locks: bool) -> None:
    stat_cache.SETTLED_SECONDS = 0.0
    if not locks:

        def refuse(*args: object) -> None:
            raise OSError("no locks here")

        fcntl.flock = refuse
    since = count_hashed(setattr)
    start.wait()
    fingerprint = open_corpus("auto", request).fingerprint
    results.put((fingerprint, since()))


@pytest.mark.parametrize("locks", [True, False])
def test_concurrent_ranks_hash_each_byte_once(
    ask: Ask, data: Path, tmp_path: Path, locks: bool
) -> None:
    request = ask(data, start="this one", notify=print)
    alone = open_corpus("auto", ask(data, cache=tmp_path / "another"))
    open_corpus("auto", request)  # tokenises; the start that is counted finds the tokens there
    for record in (tmp_path / "cache").rglob("*.json"):
        record.unlink()
    for record in (tmp_path / "cache").glob("*.verified"):
        record.unlink()
    start, results = SPAWN.Barrier(3), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=_open, args=(request, start, results, locks), daemon=True)
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=1000) for _ in processes]
    for process in processes:
        process.join()
    assert {fingerprint for fingerprint, _ in found} == {alone.fingerprint}
    size, (tokens,) = data.stat().st_size, (tmp_path / "cache").glob("*.tokens")
    once = size + 2 * size  # the text, and a token of two bytes for each of its bytes
    assert tokens.stat().st_size > 2 * size
    total = sum(count for _, count in found)
    assert total == once if locks else once <= total <= 3 * once


def test_fingerprint_of_a_text_never_changes(ask: Ask, tmp_path: Path) -> None:
    """The expected fingerprint is a constant: old checkpoints resume without --allow-new-data."""
    for name, expected in FINGERPRINTS.items():
        (tmp_path / name).write_bytes(CONTENT[name])
        assert open_corpus("auto", ask(tmp_path / name)).fingerprint == expected


CONTENT = {
    "a.txt": "größer and greater\n".encode() * 20,
    "a.jsonl": b'{"text": "one and two"}\n{"text": "three"}\n' * 20,
}
FINGERPRINTS = {
    "a.txt": "95adaa1dc6ca9ca1c776ec6c30ed8842dcc1f84dbbba93fe9b15aa993b0f354b",
    "a.jsonl": "afb5ffef88ee81ed3f9093f638c5c9d423ec96178aec4f9687bc214a745dc425",
}
