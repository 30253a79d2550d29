"""The disk: names that last through a power cut, and what to do when it is full. No torch."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT)


def fsync_folder(path: Path) -> None:
    """Write the names in a folder to the disk, so that a rename lasts through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Name ``path`` in an OSError that is raised inside without a file's name, as by a write."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise


FREE_SPACE_REMEDY = (
    "Checkpoints that were saved are whole: make room, and --resume goes on from the newest"
)
"""What a run adds."""


def full_disk_error(error: BaseException, remedy: str = "Make room") -> RunError | None:
    """What an error of a full disk means to the user, and what to do; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    name = error.filename or "a file"
    free = _free_bytes(Path(str(error.filename or ".")))
    return RunError(
        f"{name} cannot be written: {error.strerror}; {free:,} bytes are free there. {remedy}"
    )


def _free_bytes(path: Path) -> int:
    """The bytes that are free where ``path`` is, or would be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
