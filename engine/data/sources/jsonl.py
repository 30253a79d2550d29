"""JSON lines: an object on every line, each a document, whose text is under one key."""

from __future__ import annotations

import json
from collections.abc import Iterator

from engine.data.data_file import DataFile
from engine.data.documents import FileDocuments, read_files
from engine.data.source import Corpus, SourceRequest
from engine.data.tokenize import build_corpus
from engine.data.tokenizer import Piece
from engine.errors import UserError

BOM = b"\xef\xbb\xbf"
MAX_LISTED = 12  # keys in a message


def open_corpus(request: SourceRequest) -> Corpus:
    if request.path is None:
        raise UserError("data.type='jsonl' needs a file: set DATA or data.path")
    return build_corpus(
        read_files(request.path, request.cache, lambda file: JsonLines(file, request.key)), request
    )


class JsonLines(FileDocuments):
    """Documents joined by end-of-text; empty lines between them are skipped."""

    def __init__(self, file: DataFile, key: str) -> None:
        super().__init__(file)
        self._key = key
        self.kind = kind_of("jsonl", key)

    def pieces(self) -> Iterator[Piece]:
        offset, first = 0, True
        for number, line in enumerate(self._file.lines(), start=1):
            content = line.removeprefix(BOM) if number == 1 else line
            if content.strip():
                if not first:
                    yield None
                yield self._text(content, number, offset + len(line) - len(content))
                first = False
            offset += len(line)

    def _text(self, line: bytes, number: int, offset: int) -> str:
        """The text of line ``number``, which starts at byte ``offset`` of the file."""
        where = f"{self.name}, line {number}"
        try:
            value = json.loads(line.decode().rstrip())
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: not UTF-8: byte {offset + error.start:,} "
                f"is 0x{line[error.start]:02x} ({error.reason})"
            ) from None
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}: not JSON: {error.msg} (column {error.colno}); each line is to be an "
                f"object with a \"{self._key}\"; data.type='text' learns the file as it is"
            ) from None
        except (ValueError, RecursionError) as error:  # a number too long, nesting too deep
            raise UserError(f"{where}: not JSON that can be read: {error}") from None
        return text_in(value, self._key, where)


def kind_of(source: str, key: str) -> str:
    """How content becomes text by a source and a key."""
    return source if key == "text" else f"{source} {key}"


def text_in(value: object, key: str, where: str) -> str:
    """The text of a document that JSON holds. Raises UserError, beginning with ``where``."""
    if not isinstance(value, dict):
        raise UserError(f'{where}: not an object with a "{key}"')
    if key not in value:
        keys = [str(name) for name in value]
        more = f" and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else ""
        there = ", ".join(map(repr, keys[:MAX_LISTED])) + more if keys else "none"
        raise UserError(
            f'{where}: no "{key}" in it; its keys: {there}; data.key names the one to read'
        )
    text = value[key]
    if not isinstance(text, str):
        raise UserError(f'{where}: not an object with a "{key}" that is a string')
    return encodable(text, f'{where}: "{key}"')


def encodable(text: str, what: str) -> str:
    """Return ``text``, which JSON held as ``what``. Raises UserError where UTF-8 cannot encode
    it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{what} holds half of a surrogate pair") from None
    return text
