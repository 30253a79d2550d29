"""JSON lines: every line is an object, and the string under one key of it is a document."""

from __future__ import annotations

import json
from collections.abc import Iterator

from engine.data.input_files.data_file import DataFile
from engine.data.input_files.documents import Documents, FileDocuments, read_files
from engine.data.source import Corpus, SourceRequest
from engine.data.tokenize import build_corpus
from engine.data.tokenizer import Piece
from engine.errors import UserError

BOM = b"\xef\xbb\xbf"
MAX_LISTED = 12  # keys listed in a message


def open_documents(request: SourceRequest) -> Documents:
    if request.path is None:
        raise UserError("data.type='jsonl' needs a file; set DATA or data.path")
    return read_files(request.path, request.cache, lambda file: JsonLines(file, request.key))


def open_corpus(request: SourceRequest) -> Corpus:
    return build_corpus(open_documents(request), request)


class JsonLines(FileDocuments):
    """The documents of a file, separated by end-of-text. Empty lines are skipped."""

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
        """Return the text of line ``number``, which starts at byte ``offset`` of the file."""
        where = f"{self.name}, line {number}"
        try:
            value = json.loads(line.decode().rstrip())
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: not UTF-8: byte {offset + error.start:,} "
                f"is 0x{line[error.start]:02x} ({error.reason}); convert the file to UTF-8"
            ) from None
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}: not JSON: {error.msg} (column {error.colno}); each line must be an "
                f"object with a \"{self._key}\"; data.type='text' trains on the file as text"
            ) from None
        except (ValueError, RecursionError) as error:  # too long a number or too deep nesting
            raise UserError(
                f"{where}: not JSON that can be parsed: {error}; correct or remove it"
            ) from None
        return text_in(value, self._key, where)


def kind_of(source: str, key: str) -> str:
    """Return ``Documents.kind`` for text that ``source`` reads under ``key``."""
    return source if key == "text" else f"{source} {key}"


def text_in(value: object, key: str, where: str) -> str:
    """Return the string under ``key`` in a JSON object. Raises UserError, which begins with
    ``where``."""
    if not isinstance(value, dict):
        raise UserError(f'{where}: not an object with a "{key}"; correct or remove it')
    if key not in value:
        keys = [str(name) for name in value]
        more = f" and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else ""
        listed = ", ".join(map(repr, keys[:MAX_LISTED])) + more if keys else "none"
        raise UserError(f'{where}: has no "{key}"; set data.key to one of its keys: {listed}')
    text = value[key]
    if not isinstance(text, str):
        raise UserError(
            f'{where}: not an object with a "{key}" that is a string; set data.key to a key of text'
        )
    return encodable(text, f'{where}: "{key}"')


def encodable(text: str, what: str) -> str:
    """Return ``text``. Raises UserError, which begins with ``what``, if it is no valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{what} contains half of a surrogate pair; correct the text") from None
    return text
