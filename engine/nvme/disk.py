"""A rank's folder on the disk that stores offloaded training state. Imports no torch."""

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
from engine.files.full_disk import FULL
from engine.formatting import format_bytes

PREFIX = "cuboid-"
LOCK = "in-use"


@dataclass
class Disk:
    """This rank's folder on a disk that several ranks may share."""

    folder: Path
    """The folder of this rank alone."""
    free: int
    """Bytes that were free when the folder was made."""
    ranks: int
    """Number of ranks that share the disk."""
    setting: str
    """The setting that names the path, as messages cite it."""
    files: dict[Path, int] = field(default_factory=dict)
    """Inode numbers of the reserved files."""

    def reserve(self, name: str, size: int) -> Path:
        """Create a file of ``size`` bytes and return its path. Its blocks are allocated at once,
        if the system supports that.

        Raises UserError if the disk is too small.
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
            full = error.errno in (*FULL, errno.EFBIG)
            raise UserError(
                self._too_small(size) if full else f"{self.setting}: {path}: {error.strerror}"
            ) from error
        finally:
            os.close(descriptor)
        return path

    def check(self) -> None:
        """Check that all reserved files still exist. Raises RunError."""
        for path, number in self.files.items():
            try:
                exists = path.stat().st_ino == number
            except OSError:
                exists = False
            if not exists:
                raise RunError(
                    f"{self.setting}: {path} was removed while the run used it; resume the run "
                    "from its last checkpoint"
                )

    def _too_small(self, size: int) -> str:
        others = f", and {self.ranks} ranks of this machine share it" if self.ranks > 1 else ""
        return (
            f"{self.setting}: a rank offloads {format_bytes(size)} and "
            f"{format_bytes(self.free)} are free"
            f"{others}"
        )


@contextmanager
def open_disk(root: Path, name: str, *, ranks: int = 1, setting: str = "") -> Iterator[Disk]:
    """Create a folder in ``root`` for this rank, called after ``name``, and remove the folder at
    the end.

    Folders of killed runs are removed first. Each process locks its folder, and the lock ends with
    the process: so several runs can share ``root``.

    Raises UserError if ``root`` is not a folder, or no folder can be created in it.
    """
    setting = setting or str(root)
    if not root.is_dir():
        raise UserError(f"{setting} is not a folder on this machine; create it on the NVMe disk")
    try:
        remove_abandoned(root)
        folder, lock = _claim(root, PREFIX + re.sub(r"[^\w.-]", "_", name)[:100])
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise UserError(f"{setting}: cannot create a folder in it: {error.strerror}") from error
    try:
        yield Disk(folder=folder, free=free, ranks=ranks, setting=setting)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned(root: Path) -> None:
    """Remove the folders in ``root`` whose processes were killed."""
    for folder in root.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / LOCK, os.O_RDWR)
        except OSError:  # no folder of cuboid, of another user, or removed by now
            continue
        try:
            if _lock(lock) and _is(folder / LOCK, lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _claim(root: Path, name: str) -> tuple[Path, int]:
    """Create and lock a folder called ``name``, or name-2 and so on; return its path and the lock's
    file descriptor. The folder is locked before it gets its name: another run would remove an
    unlocked folder."""
    temporary = root / f".{name}-{uuid.uuid4().hex}"
    temporary.mkdir(mode=0o700)
    lock = os.open(temporary / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    locked = _lock(lock)
    assert locked, "another process locked a new file"
    for number in count(1):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        else:
            return folder, lock
    raise AssertionError("all numbers are taken")


def _is(path: Path, descriptor: int) -> bool:
    """Return whether ``path`` is still the file that is open as ``descriptor``. Another run may
    have removed that file and created another one at ``path`` meanwhile."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except OSError:
        return False


def _lock(descriptor: int) -> bool:
    """Try to lock the open file ``descriptor``, and return whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
