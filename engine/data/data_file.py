"""Files of data as bytes: checked, uncompressed, hashed, and streamed without holding them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from engine import paths
from engine.data import stat_cache
from engine.errors import UserError

BLOCK = 1 << 20  # bytes
MIN_CACHED_BYTES = 1 << 20  # bytes; a smaller file is hashed in a millisecond
HEAD = 1 << 16  # bytes that formats are told by
DECOMPRESSORS: dict[str, Callable[[Path], BufferedIOBase]] = {  # of engine.paths.COMPRESSIONS
    "gzip": gzip.GzipFile,
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}
COMPRESSED_SUFFIXES = {".gz", ".bz2", ".xz"}
CORRUPTION_ERRORS = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class DataFile:
    """A readable, non-empty file. One that gzip, bzip2 or xz compressed is read as what is in it.

    Raises:
        UserError: missing, of another kind (it is read twice, so no pipe), empty, unreadable.
    """

    def __init__(
        self, path: str | Path, name: str | None = None, *, records: Path | None = None
    ) -> None:
        """``name``: how messages call it. ``records``: a folder where its digest is kept."""
        self.path = Path(path)
        self.name = name or f"data.path={str(path)!r}"
        self._records = records
        if problem := paths.problem_at(self.path, paths.FILE):
            raise UserError(f"{self.name} {problem}")
        if self.path.stat().st_size == 0:
            raise UserError(f"{self.name} is empty")

    @property
    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal."""
        return str(self._content["sha256"])

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return int(self._content["size"])

    @cached_property
    def head(self) -> bytes:
        """The first ``HEAD`` bytes of the content."""
        return next(self._pieces(HEAD), b"")

    def blocks(self) -> Iterator[bytes]:
        """Yield the content in blocks of ``BLOCK`` bytes. Raises UserError where it is no longer
        what ``digest`` was taken of."""
        return self._verified(self._pieces(BLOCK))

    def lines(self) -> Iterator[bytes]:
        """Yield the content by line, ends of lines included. Raises like ``blocks``."""
        return self._verified(self._pieces(None))

    @cached_property
    def _content(self) -> dict[str, Any]:
        if self._records is None or self.path.stat().st_size < MIN_CACHED_BYTES:
            return self._hash()
        return stat_cache.cached_by_stat(self.path, self._records, self._hash)

    def _hash(self) -> dict[str, Any]:
        seen, size = hashlib.sha256(), 0
        for block in self._pieces(BLOCK):
            seen.update(block)
            size += len(block)
        return {"sha256": seen.hexdigest(), "size": size}

    def _verified(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        expected, seen = self.digest, hashlib.sha256()
        for piece in pieces:
            seen.update(piece)
            yield piece
        if seen.hexdigest() != expected:
            raise UserError(f"{self.name} was changed while it was read; start again")

    def _pieces(self, size: int | None) -> Iterator[bytes]:
        """Yield the content in blocks of ``size`` bytes; by line where that is None."""
        try:
            with self._open() as handle:
                yield from handle if size is None else iter(partial(handle.read, size), b"")
        except CORRUPTION_ERRORS as error:
            raise UserError(f"{self.name} is compressed and damaged: {error}") from None
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {error.strerror or error}") from error

    def _open(self) -> BufferedIOBase:
        compression = paths.compression_of(self.path)
        if compression is None:
            return self.path.open("rb")
        return DECOMPRESSORS[compression](self.path)


def data_files(given: str | Sequence[str], *, records: Path | None = None) -> list[DataFile]:
    """List the files that data.path stands for: files, the files below folders, and what glob
    patterns match, each sorted by name; a list's parts in the order of the list; no file twice.
    ``records``: a folder where their digests are kept.

    Raises UserError where something is missing or cannot be read.
    """
    parts = [given] if isinstance(given, str) else given
    named = f"data.path={given if isinstance(given, str) else list(given)!r}"
    found: dict[Path, DataFile] = {}
    for part in parts:
        name = f"data.path={part!r}"
        for match in map(Path, paths.matches(part) or [part]):
            for path in _below(match, name):
                if path not in found and (path == match or not _is_empty(path)):
                    name_of = name if path == Path(part) else f"{name}: {path}"
                    found[path] = DataFile(path, name_of, records=records)
    if not found:
        raise UserError(f"{named}: no file in it holds anything")
    return list(found.values())


def _below(path: Path, name: str) -> list[Path]:
    try:
        return paths.files_below(path) if path.is_dir() else [path]
    except OSError as error:
        raise UserError(f"{name}: {error.filename} cannot be read: {error.strerror}") from None


def _is_empty(path: Path) -> bool:
    """Whether a file of a folder holds nothing, and is left out."""
    return path.is_file() and path.stat().st_size == 0
