"""Records of what was found out about a file, valid while the file is the same by its stat.

To hash a file takes seconds per GB: one process does it, and what it found is kept in the cache.
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
"""Seconds after which a change of a file shows in its times, even where these are whole seconds."""


@dataclass(frozen=True)
class Stamp:
    """What the file system says of a file. Any change of its content changes it, but for one within
    the same tick of the file system's clock."""

    size: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of_file(cls, path: Path) -> Stamp:
        """Raises OSError."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    @property
    def is_settled(self) -> bool:
        """Whether a change from now on would show."""
        return time.time_ns() - max(self.modified, self.changed) > SETTLED_SECONDS * 1e9


def cached_by_stat(path: Path, folder: Path, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``find`` finds out about the content of the file at ``path``; from the record of it in
    ``folder`` where the file has not changed since. Of processes that come together one finds it
    out and the others wait. Without a record that can be written each finds it out by itself.

    Raises what ``find`` raises.
    """
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    record = folder / f"{name}.json"
    with locked(record.with_suffix(".lock")):
        before = None
        with suppress(OSError):
            before = Stamp.of_file(path)
            if (found := read_record(record, before)) is not None:
                return found
        found = find()
        with suppress(OSError):
            if before is not None and before.is_settled and Stamp.of_file(path) == before:
                write_record(record, before, found)
        return found


def read_record(record: Path, stamp: Stamp) -> dict[str, Any] | None:
    """What a record says of the file with this stamp; None where it is of another one, damaged or
    missing."""
    try:
        saved = json.loads(record.read_text(encoding="utf-8"))
        found: dict[str, Any] = saved["found"]
        known = saved == _signed(stamp, found)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if known else None


def write_record(record: Path, stamp: Stamp, found: dict[str, Any]) -> None:
    """Keep what was found of the file with this stamp. Raises OSError."""
    draft = record.with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        draft.write_text(json.dumps(_signed(stamp, found)), encoding="utf-8")
        draft.replace(record)
    finally:
        draft.unlink(missing_ok=True)


def _signed(stamp: Stamp, found: dict[str, Any]) -> dict[str, Any]:
    """A record; its last part tells when a bit of it has changed."""
    said = {"stamp": list(vars(stamp).values()), "found": found}
    check = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return {**said, "check": check}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock among the processes of this machine; the kernel unlocks for one that dies. No
    lock is held where the folder cannot be written or the file system has none."""
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(path.open("ab"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
