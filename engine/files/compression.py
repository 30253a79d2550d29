"""Detection of gzip, bzip2 and xz files by their first bytes."""

from __future__ import annotations

from pathlib import Path

COMPRESSIONS = {  # by the first bytes of a file
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
}


def compression_of(file: Path) -> str | None:
    """Return the compression of a file, one of ``COMPRESSIONS``, by its first bytes; None if it is
    not compressed. Raises OSError if it cannot be read."""
    with file.open("rb") as handle:
        start = handle.read(max(map(len, COMPRESSIONS)))
    return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None)
