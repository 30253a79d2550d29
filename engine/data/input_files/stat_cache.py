"""Cache of values computed from a file's content, valid while the file's stat is unchanged.

Hashing a file takes seconds per GB, so one process does it and records the result in the cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTLED_SECONDS = 2.0
"""Age after which any further change of a file changes its times, even at a resolution of 1 s."""


@dataclass(frozen=True)
class Stamp:
    """The stat of a file. Any change of the content changes it, except a change within the same
    tick of the file system's clock."""

    size: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of_file(cls, path: Path) -> Stamp:
        """Return the stamp of a file. Raises OSError."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)

    @property
    def is_settled(self) -> bool:
        """True if any change from now on would change the stamp."""
        return time.time_ns() - max(self.modified, self.changed) > SETTLED_SECONDS * 1e9


def cached_by_stat(path: Path, folder: Path, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of ``find``, which reads the file at ``path``. If ``folder`` has a record
    of the result and the file is unchanged, return the recorded result. One of several concurrent
    processes calls ``find``; the others wait for its record. If no record can be written, each
    calls ``find``.

    Raises the exceptions of ``find``.
    """
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    record = folder / f"{name}.json"
    with locked(record.with_suffix(".lock")):
        before = None
        with suppress(OSError):
            before = Stamp.of_file(path)
            if (value := read_record(record, before)) is not None:
                return value
        value = find()
        with suppress(OSError):
            if before is not None and before.is_settled and Stamp.of_file(path) == before:
                write_record(record, before, value)
        return value


def read_record(record: Path, stamp: Stamp) -> dict[str, Any] | None:
    """Return the recorded value for a file with this stamp; None if the record is missing, corrupt
    or of another stamp."""
    try:
        saved = json.loads(record.read_text(encoding="utf-8"))
        value: dict[str, Any] = saved["found"]
        valid = saved == _signed(stamp, value)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if valid else None


def write_record(record: Path, stamp: Stamp, value: dict[str, Any]) -> None:
    """Write ``value`` as the record of a file with this stamp. Raises OSError."""
    draft = record.with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        draft.write_text(json.dumps(_signed(stamp, value)), encoding="utf-8")
        draft.replace(record)
    finally:
        draft.unlink(missing_ok=True)


def _signed(stamp: Stamp, value: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a record, with a hash that detects corruption."""
    content = {"stamp": list(vars(stamp).values()), "found": value}
    check = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, "check": check}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive flock on ``path`` in the block; the kernel releases it if the process dies.
    Runs the block without a lock if the folder cannot be written or its file system has no
    locks."""
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(path.open("ab"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
