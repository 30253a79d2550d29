"""Cache of token files: each is built once, written atomically and memory-mapped.

A file contains the ids, then a JSON object, then a tail of fixed size. So ids are written as a
stream, and ``np.memmap(path, dtype)`` reads them from the start of the file.
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

from engine.data.input_files import stat_cache
from engine.errors import UserError
from engine.files.atomic_write import atomic_file

TAIL = struct.Struct("<Q32s8s")  # bytes of JSON, their SHA-256, MAGIC
MAGIC = b"CUBOIDT1"
STARTS = 16  # starts of runs whose verifications are recorded; older ones are dropped
ABANDONED_SECONDS = 24 * 3600  # an unfinished file that is older has no builder any more


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """A token file that is memory-mapped."""

    ids: NDArray[np.unsignedinteger[Any]]
    """[n], uint16 or uint32."""
    about: dict[str, Any]
    """The JSON object that the builder returned."""


class Write(Protocol):
    """Appends ids [n], of the file's dtype, to a token file."""

    def __call__(self, ids: NDArray[Any], /) -> None: ...


Build = Callable[[Write], tuple[str, dict[str, Any]]]
"""Writes all ids; returns their dtype ('<u2' or '<u4') and a JSON object about them."""


def load_or_build(path: Path, build: Build, *, start: str | None = None) -> TokenFile:
    """Open the token file at ``path``; build it first if it is missing or corrupt.

    One of several concurrent processes builds and the others wait for it. Without file locks each
    builds its own copy; the copies are equal and the last rename wins.

    Every start of a run verifies every byte once: the first process to arrive records the
    verification under the name ``start``, and the other processes of that start verify only if the
    file has changed. If ``start`` is None, or nothing can be recorded, each process verifies.

    Raises:
        UserError: the folder cannot be used or the disk is full.
    """
    try:
        with stat_cache.locked(path.with_suffix(".lock")):
            file = _verified(path, start)
            if file is None:
                _write(path, build)
                file = _verified(path, start)
    except OSError as error:
        raise UserError(
            f"data.cache: {path} cannot be used: {error.strerror or error}; "
            "set data.cache to a folder that can be written"
        ) from error
    if file is None:
        raise UserError(f"data.cache: {path} is corrupt right after it was written; check the disk")
    return file


def _verified(path: Path, start: str | None) -> TokenFile | None:
    """Open the file. Verify it, unless another process of the same start has done so. None if the
    file is missing or corrupt."""
    record = path.with_suffix(".verified")
    try:
        stamp = stat_cache.Stamp.of_file(path)
    except FileNotFoundError:
        return None
    starts = (stat_cache.read_record(record, stamp) or {}).get("starts", [])
    if start in starts:
        return read(path, verify=False)
    file = read(path)
    if file is not None and start is not None and stat_cache.Stamp.of_file(path) == stamp:
        with suppress(OSError):
            stat_cache.write_record(record, stamp, {"starts": [*starts, start][-STARTS:]})
    return file


def read(path: Path, *, verify: bool = True) -> TokenFile | None:
    """Open the file; None if it is missing or truncated, or with ``verify`` if any bit changed."""
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
    """Read the JSON object behind the ids. Raises ValueError for an incomplete file."""
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
        raise ValueError("corrupt")
    about: dict[str, Any] = json.loads(text)
    return about


def _write(path: Path, build: Build) -> None:
    """Build ``path`` in a temporary file, which is fsynced and renamed."""
    _remove_abandoned(path)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.part")  # other machines may write it, too
    digest = hashlib.sha256()
    with atomic_file(path, temporary) as handle:

        def write(ids: NDArray[Any]) -> None:
            data = ids.tobytes()
            digest.update(data)
            handle.write(data)

        dtype, about = build(write)
        count = handle.tell() // np.dtype(dtype).itemsize
        tail = {"dtype": dtype, "count": count, "sha256": digest.hexdigest(), "about": about}
        text = json.dumps(tail).encode()
        handle.write(text + TAIL.pack(len(text), hashlib.sha256(text).digest(), MAGIC))


def _remove_abandoned(path: Path) -> None:
    """Delete the temporary files of killed builders; a live builder's file is newer."""
    for unfinished in path.parent.glob(f"{path.stem}.*.part"):
        with suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > ABANDONED_SECONDS:
                unfinished.unlink()
