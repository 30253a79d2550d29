"""Data files as streams of bytes: checked, decompressed and hashed, never read whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from engine.data.input_files import stat_cache
from engine.errors import UserError
from engine.files import paths
from engine.files.compression import CORRUPTION_ERRORS, open_decompressed

BLOCK = 1 << 20  # bytes
MIN_CACHED_BYTES = 1 << 20  # the hash of a smaller file takes a millisecond and is not cached
HEAD = 1 << 16  # bytes that identify the format


class DataFile:
    """A readable, non-empty file; gzip, bzip2 and xz are decompressed while reading.

    Raises:
        UserError: the file is missing, empty, unreadable or no regular file. A pipe is no
            regular file: it cannot be read twice.
    """

    def __init__(
        self, path: str | Path, name: str | None = None, *, records: Path | None = None
    ) -> None:
        """Check the file. ``name``: in messages. ``records``: a folder that caches its digest."""
        self.path = Path(path)
        self.name = name or f"data.path={str(path)!r}"
        self._records = records
        if problem := paths.problem_at(self.path, paths.FILE):
            raise UserError(f"{self.name} {problem}")
        if self.path.stat().st_size == 0:
            raise UserError(f"{self.name} is empty; name a file with data")

    @property
    def digest(self) -> str:
        """SHA-256 of the decompressed content, hexadecimal."""
        return str(self._content["sha256"])

    @property
    def size(self) -> int:
        """Size of the decompressed content in bytes."""
        return int(self._content["size"])

    @cached_property
    def head(self) -> bytes:
        """The first ``HEAD`` bytes of the decompressed content."""
        return next(self._pieces(HEAD), b"")

    def blocks(self) -> Iterator[bytes]:
        """Yield the content in blocks of ``BLOCK`` bytes. Raises UserError where it has changed
        since ``digest`` was computed."""
        return self._verified(self._pieces(BLOCK))

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, with their line ends. Raises UserError as ``blocks`` does."""
        return self._verified(self._pieces(None))

    @cached_property
    def _content(self) -> dict[str, Any]:
        if self._records is None or self.path.stat().st_size < MIN_CACHED_BYTES:
            return self._hash()
        return stat_cache.cached_by_stat(self.path, self._records, self._hash)

    def _hash(self) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        for block in self._pieces(BLOCK):
            digest.update(block)
            size += len(block)
        return {"sha256": digest.hexdigest(), "size": size}

    def _verified(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        expected, digest = self.digest, hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            yield piece
        if digest.hexdigest() != expected:
            raise UserError(f"{self.name} was changed while it was read; start again")

    def _pieces(self, size: int | None) -> Iterator[bytes]:
        """Yield the content in blocks of ``size`` bytes; line by line if None."""
        try:
            with open_decompressed(self.path) as handle:
                yield from handle if size is None else iter(partial(handle.read, size), b"")
        except CORRUPTION_ERRORS as error:
            raise UserError(
                f"{self.name} is a corrupt compressed file: {error}; restore it"
            ) from None
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {error.strerror or error}") from error


def data_files(given: str | Sequence[str], *, records: Path | None = None) -> list[DataFile]:
    """List the files of data.path, each once. A folder stands for the files below it and a glob
    pattern for its matches, both sorted by name; the parts of a list keep their order.
    ``records`` is a folder that caches digests.

    Raises UserError where a file is missing or cannot be read.
    """
    parts = [given] if isinstance(given, str) else given
    named = f"data.path={given if isinstance(given, str) else list(given)!r}"
    files: dict[Path, DataFile] = {}
    for part in parts:
        name = f"data.path={part!r}"
        for match in map(Path, paths.matches(part) or [part]):
            for path in _below(match, name):
                if path not in files and (path == match or not _is_empty(path)):
                    name_of = name if path == Path(part) else f"{name}: {path}"
                    files[path] = DataFile(path, name_of, records=records)
    if not files:
        raise UserError(f"{named}: no file is there, or all files are empty; name one with data")
    return list(files.values())


def _below(path: Path, name: str) -> list[Path]:
    try:
        return paths.files_below(path) if path.is_dir() else [path]
    except OSError as error:
        raise UserError(f"{name}: {error.filename} cannot be read: {error.strerror}") from None


def _is_empty(path: Path) -> bool:
    """Return whether a path is an empty file, which is skipped in folders."""
    return path.is_file() and path.stat().st_size == 0
