"""gzip, bzip2 and xz files: detected by their first bytes, decompressed while they are read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Mapping
from io import BufferedIOBase
from pathlib import Path

DECOMPRESSORS: Mapping[bytes, Callable[[Path], BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
"""The class that reads a compressed file, by the first bytes of the file."""
COMPRESSED_SUFFIXES = {".gz", ".bz2", ".xz"}
CORRUPTION_ERRORS = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
"""The errors that reading a corrupt compressed file raises."""


def is_compressed(file: Path) -> bool:
    """Return whether a file is compressed. Raises OSError if it cannot be read."""
    return _decompressor(file) is not None


def open_decompressed(file: Path) -> BufferedIOBase:
    """Open a file; its content is decompressed while it is read. Raises OSError."""
    decompressor = _decompressor(file)
    return file.open("rb") if decompressor is None else decompressor(file)


def _decompressor(file: Path) -> Callable[[Path], BufferedIOBase] | None:
    """Return the class that decompresses a file; None if the file is not compressed."""
    with file.open("rb") as handle:
        start = handle.read(max(map(len, DECOMPRESSORS)))
    return next((found for magic, found in DECOMPRESSORS.items() if start.startswith(magic)), None)
