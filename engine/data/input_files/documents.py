"""Documents: the text of files, with a separator between documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from engine.data.input_files.data_file import DataFile, data_files
from engine.data.tokenizer import Piece


class Documents(Protocol):
    """A stream of documents. It is read at least twice and raises UserError if it changed."""

    @property
    def name(self) -> str:
        """Name of the document in messages."""

    @property
    def kind(self) -> str:
        """Name of the method that decodes the content to text; part of the key of the token
        cache."""

    @property
    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal."""

    @property
    def size(self) -> int:
        """Size of the content in bytes."""

    def pieces(self) -> Iterator[Piece]:
        """Yield the text in pieces, and None between two documents."""


class FileDocuments:
    """Base of the readers of one file: its name, digest and size."""

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
    """The documents of several files, concatenated."""

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


class TruncatedDocuments:
    """The first characters of documents: the fraction ``share`` of all, rounded down."""

    def __init__(self, documents: Documents, share: float) -> None:
        self._documents, self._share = documents, share
        self.name = f"{documents.name} (the first {share:.4g} of it)"
        self.kind = f"{documents.kind}, first {share!r}"
        self.digest, self.size = documents.digest, documents.size

    def pieces(self) -> Iterator[Piece]:
        rest = int(self._characters * self._share)
        for piece in self._documents.pieces():
            if rest == 0:
                return  # no separator where no document follows
            yield piece if piece is None else piece[:rest]
            rest -= len((piece or "")[:rest])

    @cached_property
    def _characters(self) -> int:
        return sum(len(piece or "") for piece in self._documents.pieces())


def truncated(documents: Documents, share: float) -> Documents:
    """Return the documents, or the first ``share`` of their characters if it is less than 1."""
    return documents if share == 1 else TruncatedDocuments(documents, share)


def read_files(
    path: str | Sequence[str], cache: Path, read: Callable[[DataFile], Documents]
) -> Documents:
    """Return the documents of all files of data.path, each opened by ``read``. A single file is the
    same data whether given by its path, in a list or in a folder. Digests are cached in ``cache``.

    Raises UserError where a file is missing or cannot be read.
    """
    parts = [read(file) for file in data_files(path, records=cache / "digests")]
    if len(parts) == 1:
        return parts[0]
    given = path if isinstance(path, str) else list(path)
    return JoinedDocuments(parts, f"data.path={given!r} ({len(parts)} files)")
