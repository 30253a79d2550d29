"""A file of text as bytes: checked, hashed, and streamed without holding it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

from engine import paths
from engine.errors import Refused

BLOCK = 1 << 20  # bytes


class File:
    """A readable, non-empty file.

    Raises:
        Refused: missing, a folder, not a regular file (it is read twice), empty, unreadable.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.name = f"data.path={path!r}"
        if problem := paths.problem_at(self.path, paths.FILE):
            raise Refused(f"{self.name} {problem}")
        self.size = self.path.stat().st_size
        if self.size == 0:
            raise Refused(f"{self.name} is empty")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal."""
        try:
            with self.path.open("rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise self._unreadable(error) from error

    def blocks(self) -> Iterator[bytes]:
        """The content, in blocks of ``BLOCK`` bytes. Raises Refused if it is not ``digest``'s."""
        return self._read(by_line=False)

    def lines(self) -> Iterator[bytes]:
        """The content, by line, ends of lines included. Raises like ``blocks``."""
        return self._read(by_line=True)

    def _read(self, *, by_line: bool) -> Iterator[bytes]:
        seen = hashlib.sha256()
        try:
            with self.path.open("rb") as handle:
                for piece in handle if by_line else iter(partial(handle.read, BLOCK), b""):
                    seen.update(piece)
                    yield piece
        except OSError as error:
            raise self._unreadable(error) from error
        if seen.hexdigest() != self.digest:
            raise Refused(f"{self.name} was changed while it was read; start again")

    def _unreadable(self, error: OSError) -> Refused:
        return Refused(f"{self.name} cannot be read: {error.strerror or error}")
