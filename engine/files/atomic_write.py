"""Atomic writes: a reader, also after a crash, finds all of the old or all of the new content.
Imports no torch.

The content is written to a temporary file or folder in the target's folder and fsynced; then it is
renamed to the target, and the rename is fsynced.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

from engine.errors import RunError, UserError
from engine.files.full_disk import fsync_folder, name_file_in_errors, require_free_bytes

OTHER_OUT_REMEDY = "name another --out"


def rename_durably(temporary: Path, path: Path) -> None:
    """Rename ``temporary``, whose content has been fsynced, to ``path``, and fsync the rename.

    A file at ``path`` is replaced. Raises OSError where ``path`` is a folder that is not empty.
    """
    temporary.rename(path)
    fsync_folder(path.parent)


@contextmanager
def atomic_file(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Yield an open temporary file that becomes ``path`` at the end of the block. If the block
    raises, the temporary file is deleted and ``path`` is unchanged.

    Raises OSError, which names ``path``.
    """
    temporary = temporary or _temporary(path)
    try:
        with name_file_in_errors(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of ``path`` with ``text``. Raises OSError, which names ``path``."""
    with atomic_file(path) as file:
        file.write(text.encode())


@contextmanager
def atomic_path(
    path: Path, *, required_bytes: int = 0, replace: bool = False, remedy: str = OTHER_OUT_REMEDY
) -> Iterator[Path]:
    """Yield a temporary path for a file or a folder, which is fsynced and renamed to ``path`` at
    the end of the block. If the block raises, the temporary is deleted.

    ``required_bytes``: the bytes that must be free on the disk.

    Raises:
        UserError: ``path`` exists and ``replace`` is False; the message ends with ``remedy``.
        RunError: the disk has too little free space, or failed.
    """
    refuse_existing(path, replace=replace, remedy=remedy)
    temporary, old = _temporary(path), _temporary(path, ".old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_free_bytes(path, required_bytes)
        _remove(temporary)
        yield temporary
        _fsync(temporary)
        # another process may have made it in the meantime
        refuse_existing(path, replace=replace, remedy=remedy)
        if path.is_dir():  # a rename does not replace a folder that is not empty
            path.rename(old)
        rename_durably(temporary, path)
        _remove(old)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        with suppress(OSError):  # a path that cannot be made cannot be removed either
            _remove(temporary)


def refuse_existing(path: Path, *, replace: bool, remedy: str = OTHER_OUT_REMEDY) -> None:
    """Raise UserError with the ``remedy`` if ``path`` exists and is not to be replaced."""
    if path.exists() and not replace:
        raise UserError(f"{path} exists already; {remedy}")


def remove_temporaries(path: Path) -> None:
    """Delete the temporary files of ``path`` that killed processes left. The caller must know that
    no other process is writing ``path``."""
    for temporary in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        _remove(temporary)


def _temporary(path: Path, suffix: str = ".tmp") -> Path:
    """Return a hidden path in the folder of ``path`` that no other process of this machine uses."""
    return path.with_name(f".{path.name}.{os.getpid()}{suffix}")


def _fsync(path: Path) -> None:
    """Fsync a file, or a folder and the files in it."""
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    if path.is_dir():
        fsync_folder(path)


def _remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
