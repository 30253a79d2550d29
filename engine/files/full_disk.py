"""Reports full disks, checks free space and fsyncs folders. Imports no torch."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of an exceeded quota."""


def fsync_folder(path: Path) -> None:
    """Fsync a folder, so that the renames in it survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Add ``path`` to an OSError from the block if the error names no file, as after a failed
    write."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise


FREE_SPACE_REMEDY = "free some space; --resume continues from the checkpoints, which are intact"
"""The remedy for a training run."""


def full_disk_error(error: BaseException, remedy: str = "free some space") -> RunError | None:
    """Translate the OSError of a full disk into a RunError that names the file, the free bytes and
    the ``remedy``. Return None for any other error."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    name = error.filename or "a file"
    free = _free_bytes(Path(str(error.filename or ".")))
    return RunError(
        f"{name} cannot be written: {error.strerror}, {free:,} bytes are free there; {remedy}"
    )


def _free_bytes(path: Path) -> int:
    """Return the free bytes of the disk of ``path``; ``path`` need not exist."""
    return shutil.disk_usage(nearest_existing(path)).free


def require_free_bytes(path: Path, needed: int) -> None:
    """Raise RunError if the disk of ``path``, which need not exist, has less than ``needed`` free
    bytes."""
    free = _free_bytes(path)
    if free < needed:
        raise RunError(
            f"{path} needs {needed:,} bytes, but its disk has {free:,} free; free some space, or "
            "write to another disk"
        )


def nearest_existing(path: Path) -> Path:
    """Return ``path``, or if it does not exist its nearest parent that does."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
