"""A rank's folder on the disk that training state is offloaded to. No torch."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from engine.errors import RunError, UserError
from engine.formatting import format_bytes

PREFIX = "cuboid-"
LOCK = "in-use"


@dataclass
class Disk:
    """``folder`` is this rank's own. ``free``: bytes that there were before any rank of the run
    took some; ``ranks``: how many share them; ``setting``: how the user gave the path."""

    folder: Path
    free: int
    ranks: int
    setting: str
    files: dict[Path, int] = field(default_factory=dict)

    def reserve(self, name: str, size: int) -> Path:
        """A new file of ``size`` bytes, all of them really there where the system can say so.

        Raises UserError where the disk has not so many.
        """
        path = self.folder / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
            else:  # macOS
                os.ftruncate(descriptor, size)
            self.files[path] = os.fstat(descriptor).st_ino
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise UserError(
                self._too_small(size) if full else f"{self.setting}: {path}: {error.strerror}"
            ) from error
        finally:
            os.close(descriptor)
        return path

    def check(self) -> None:
        """Raises RunError where files of ours are no longer in their folder."""
        for path, number in self.files.items():
            try:
                there = path.stat().st_ino == number
            except OSError:
                there = False
            if not there:
                raise RunError(f"{self.setting}: {path} was removed while the run used it")

    def _too_small(self, size: int) -> str:
        others = f", and {self.ranks} ranks of this machine share it" if self.ranks > 1 else ""
        return (
            f"{self.setting}: a rank offloads {format_bytes(size)} and "
            f"{format_bytes(self.free)} are free"
            f"{others}"
        )


@contextmanager
def open_disk(root: Path, name: str, *, ranks: int = 1, setting: str = "") -> Iterator[Disk]:
    """A new folder below ``root`` for the rank that ``name`` tells, removed at the end.

    Folders of runs that were killed are removed first. Live ones are told by a lock that ends with
    the process that holds it, so runs at the same path do not meet.

    Raises UserError where ``root`` is no folder, or nothing can be made in it.
    """
    setting = setting or str(root)
    if not root.is_dir():
        raise UserError(f"{setting} is not a folder on this machine: make one on the NVMe disk")
    try:
        remove_abandoned(root)
        folder, lock = _claim(root, PREFIX + re.sub(r"[^\w.-]", "_", name)[:100])
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise UserError(f"{setting}: cannot make a folder in it: {error.strerror}") from error
    try:
        yield Disk(folder=folder, free=free, ranks=ranks, setting=setting)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned(root: Path) -> None:
    """Remove the folders that processes left when they were killed."""
    for folder in root.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / LOCK, os.O_RDWR)
        except OSError:  # not one of ours, or another's, or gone by now
            continue
        try:
            if _lock(lock) and _is(folder / LOCK, lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _claim(root: Path, name: str) -> tuple[Path, int]:
    """A folder of that name, or of name-2 ..., and its lock. It gets its name when it is locked,
    or another run would find it left alone."""
    temporary = root / f".{name}-{uuid.uuid4().hex}"
    temporary.mkdir(mode=0o700)
    lock = os.open(temporary / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    held = _lock(lock)
    assert held, "a new file was locked by another"
    for number in count(1):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        else:
            return folder, lock
    raise AssertionError("numbers have come to an end")


def _is(path: Path, descriptor: int) -> bool:
    """Whether the open file still has this path: what was ours to remove may be gone, and the name
    another's by now."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except OSError:
        return False


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
