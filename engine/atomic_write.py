"""A file or folder that is complete and on the disk before it has its name. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from engine.disk import fsync_folder
from engine.errors import RunError, UserError

OTHER_OUT_REMEDY = "name another --out"


@contextmanager
def atomic_path(
    path: Path, *, required_bytes: int = 0, replace: bool = False, remedy: str = OTHER_OUT_REMEDY
) -> Iterator[Path]:
    """Where to write what ``path`` is to become, once the body is left without an error; otherwise
    nothing stays of it.

    Raises:
        UserError: there is something at ``path`` and it is not to be replaced.
        RunError: the disk has no ``required_bytes`` bytes, or it failed.
    """
    refuse_existing(path, replace=replace, remedy=remedy)
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < required_bytes:
            raise RunError(f"{path} needs {required_bytes:,} bytes, and its disk has {free:,} free")
        _remove(new)
        yield new
        _sync(new)
        # someone else may have made it meanwhile
        refuse_existing(path, replace=replace, remedy=remedy)
        if path.is_dir():  # a folder that holds something is not renamed over
            path.rename(old)
        new.replace(path)
        fsync_folder(path.parent)
        _remove(old)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        with suppress(OSError):  # where it cannot be made, it cannot be removed
            _remove(new)


def refuse_existing(path: Path, *, replace: bool, remedy: str = OTHER_OUT_REMEDY) -> None:
    """Raises UserError, with the ``remedy``, where there is something that is not to be
    replaced."""
    if path.exists() and not replace:
        raise UserError(f"{path} exists already: {remedy}")


def remove_temporaries(path: Path) -> None:
    """Remove what processes that were killed had begun to write of ``path``: the caller knows that
    no other writes it now."""
    for new in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        _remove(new)


def _sync(path: Path) -> None:
    """Put a file, or a folder and the files in it, on the disk."""
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    if path.is_dir():
        fsync_folder(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
