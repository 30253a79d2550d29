"""Documents: text from files, each document apart from the next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from engine.data.data_file import DataFile, data_files
from engine.data.tokenizer import Piece


class Documents(Protocol):
    """Text, read twice at least: the same both times, or UserError."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def kind(self) -> str:
        """How the content becomes text."""

    @property
    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal."""

    @property
    def size(self) -> int:
        """Bytes of the content."""

    def pieces(self) -> Iterator[Piece]:
        """Yield the text; None where a document ends and another one starts."""


class FileDocuments:
    """The part of ``Documents`` that every reader of one file shares: name, digest and size."""

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self.name = file.name

    @property
    def digest(self) -> str:
        return self._file.digest

    @property
    def size(self) -> int:
        return self._file.size


class JoinedDocuments:
    """The documents of several files, one file after the other."""

    kind = "several"

    def __init__(self, parts: Sequence[Documents], name: str) -> None:
        self._parts = parts
        self.name = name

    @property
    def digest(self) -> str:
        parts = [(part.kind, part.digest, part.size) for part in self._parts]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def size(self) -> int:
        return sum(part.size for part in self._parts)

    def pieces(self) -> Iterator[Piece]:
        begun = False
        for part in self._parts:
            first = True
            for piece in part.pieces():
                if first and begun:
                    yield None
                first, begun = False, True
                yield piece


def read_files(
    path: str | Sequence[str], cache: Path, read: Callable[[DataFile], Documents]
) -> Documents:
    """The documents of all files that data.path stands for, each as ``read`` reads it. One file is
    the same data by its own path, in a list or in a folder. Their digests are kept in ``cache``.
    Raises UserError."""
    parts = [read(file) for file in data_files(path, records=cache / "digests")]
    if len(parts) == 1:
        return parts[0]
    given = path if isinstance(path, str) else list(path)
    return JoinedDocuments(parts, f"data.path={given!r} ({len(parts)} files)")
