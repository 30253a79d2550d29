"""Token ids in one file each: built once, whole or not there at all, and mapped into memory.

The file holds the ids, then a JSON object, then a tail of fixed size, so that ids are written as
they come and ``np.memmap(path, dtype)`` reads them from its start.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.errors import Refused

TAIL = struct.Struct("<Q32s8s")  # bytes of JSON, their SHA-256, MAGIC
MAGIC = b"CUBOIDT1"
ABANDONED = 24 * 3600  # seconds after which an unfinished file has no builder any more


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """Ids [n], uint16 or uint32, mapped; and what the builder said of them."""

    ids: NDArray[np.unsignedinteger[Any]]
    about: dict[str, Any]


class Write(Protocol):
    """Takes ids [n] of the file's type; may be called any number of times."""

    def __call__(self, ids: NDArray[Any], /) -> None: ...


# Writes the ids; returns their type ('<u2' or '<u4') and an object fit for JSON.
Build = Callable[[Write], tuple[str, dict[str, Any]]]


def obtain(path: Path, build: Build) -> TokenFile:
    """The file at ``path``, built if it is missing or damaged.

    Of processes that come together one builds and the others wait for it. Where the file system
    has no locks each builds its own, and the last one stays: they are equal.

    Raises:
        Refused: the folder cannot be used, the disk is full.
    """
    try:
        found = read(path)
        if found is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock")):
                found = read(path)
                if found is None:
                    _write(path, build)
                    found = read(path)
    except OSError as error:
        raise Refused(f"data.cache: {path} cannot be used: {error.strerror or error}") from error
    if found is None:
        raise Refused(f"data.cache: {path} was written and reads back damaged: is the disk sound?")
    return found


def read(path: Path) -> TokenFile | None:
    """The file, every byte of it verified; None if it is missing, truncated or damaged."""
    try:
        with path.open("rb") as handle:
            about = _read_tail(handle)
            ids = np.memmap(handle, about["dtype"], "r", shape=(about["count"],))
    except (FileNotFoundError, ValueError):
        return None
    if hashlib.sha256(ids.data).hexdigest() != about["sha256"]:
        return None
    return TokenFile(ids=ids, about=about["about"])


def _read_tail(handle: BinaryIO) -> dict[str, Any]:
    """The JSON object behind the ids. Raises ValueError if this is no whole file."""
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, size - TAIL.size))
    tail = handle.read(TAIL.size)
    if len(tail) != TAIL.size:
        raise ValueError("too short")
    length, digest, magic = TAIL.unpack(tail)
    end = size - TAIL.size - length
    if magic != MAGIC or end <= 0:
        raise ValueError("no tail")
    handle.seek(end)
    text = handle.read(length)
    if hashlib.sha256(text).digest() != digest:
        raise ValueError("damaged")
    about: dict[str, Any] = json.loads(text)
    return about


def _write(path: Path, build: Build) -> None:
    """Build beside ``path``, flush to the disk, and only then take its name."""
    _remove_abandoned(path)
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}.part")
    seen = hashlib.sha256()
    try:
        with unfinished.open("xb") as handle:

            def write(ids: NDArray[Any]) -> None:
                seen.update(ids.tobytes())
                handle.write(ids.tobytes())

            dtype, about = build(write)
            count = handle.tell() // np.dtype(dtype).itemsize
            inside = {"dtype": dtype, "count": count, "sha256": seen.hexdigest(), "about": about}
            text = json.dumps(inside).encode()
            handle.write(text + TAIL.pack(len(text), hashlib.sha256(text).digest(), MAGIC))
            handle.flush()
            os.fsync(handle.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """What builders that were killed left of this file; a live one touches its own."""
    for unfinished in path.parent.glob(f"{path.stem}.*.part"):
        with suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > ABANDONED:
                unfinished.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this machine; the kernel unlocks for one that dies."""
    with path.open("ab") as handle:
        with suppress(OSError):  # a file system without locks: see ``obtain``
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
