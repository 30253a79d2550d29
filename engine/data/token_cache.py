"""Token ids in one file each: built once, whole or not there at all, and mapped into memory.

The file holds the ids, then a JSON object, then a tail of fixed size, so that ids are written as
they come and ``np.memmap(path, dtype)`` reads them from its start.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.atomic_write import atomic_file
from engine.data import stat_cache
from engine.errors import UserError

TAIL = struct.Struct("<Q32s8s")  # bytes of JSON, their SHA-256, MAGIC
MAGIC = b"CUBOIDT1"
STARTS = 16  # of runs that begin together, whose verifications are recorded
ABANDONED_SECONDS = 24 * 3600  # seconds after which an unfinished file has no builder any more


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


def load_or_build(path: Path, build: Build, *, start: str | None = None) -> TokenFile:
    """The file at ``path``, built if it is missing or damaged.

    Of processes that come together one builds and the others wait for it. Where the file system
    has no locks each builds its own, and the last one stays: they are equal.

    Every start of a run verifies every byte, once: the first process that gets here records it
    under the name ``start``, and the others of the same start rely on it unless the file has
    changed since. Without a name, or where nothing can be recorded, each process verifies.

    Raises:
        UserError: the folder cannot be used, the disk is full.
    """
    try:
        with stat_cache.locked(path.with_suffix(".lock")):
            found = _verified(path, start)
            if found is None:
                _write(path, build)
                found = _verified(path, start)
    except OSError as error:
        raise UserError(f"data.cache: {path} cannot be used: {error.strerror or error}") from error
    if found is None:
        raise UserError(
            f"data.cache: {path} was written and reads back damaged: is the disk sound?"
        )
    return found


def _verified(path: Path, start: str | None) -> TokenFile | None:
    """The file, verified by this process or by another one of the same start; None if it is missing
    or damaged."""
    record = path.with_suffix(".verified")
    try:
        stamp = stat_cache.Stamp.of_file(path)
    except FileNotFoundError:
        return None
    starts = (stat_cache.read_record(record, stamp) or {}).get("starts", [])
    if start in starts:
        return read(path, verify=False)
    found = read(path)
    if found is not None and start is not None and stat_cache.Stamp.of_file(path) == stamp:
        with suppress(OSError):
            stat_cache.write_record(record, stamp, {"starts": [*starts, start][-STARTS:]})
    return found


def read(path: Path, *, verify: bool = True) -> TokenFile | None:
    """The file; None if it is missing or truncated, or with ``verify`` if any bit of it changed."""
    try:
        with path.open("rb") as handle:
            about = _read_tail(handle)
            ids = np.memmap(handle, about["dtype"], "r", shape=(about["count"],))
    except (FileNotFoundError, ValueError):
        return None
    if verify and hashlib.sha256(ids.data).hexdigest() != about["sha256"]:
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
    """Build ``path`` in a temporary file, which is fsynced and renamed."""
    _remove_abandoned(path)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.part")  # other machines may write it, too
    digest = hashlib.sha256()
    with atomic_file(path, temporary) as handle:

        def write(ids: NDArray[Any]) -> None:
            digest.update(ids.tobytes())
            handle.write(ids.tobytes())

        dtype, about = build(write)
        count = handle.tell() // np.dtype(dtype).itemsize
        inside = {"dtype": dtype, "count": count, "sha256": digest.hexdigest(), "about": about}
        text = json.dumps(inside).encode()
        handle.write(text + TAIL.pack(len(text), hashlib.sha256(text).digest(), MAGIC))


def _remove_abandoned(path: Path) -> None:
    """What builders that were killed left of this file; a live one touches its own."""
    for unfinished in path.parent.glob(f"{path.stem}.*.part"):
        with suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > ABANDONED_SECONDS:
                unfinished.unlink()
