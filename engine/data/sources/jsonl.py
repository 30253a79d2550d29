"""JSON lines: an object with a "text" on every line, each a document."""

from __future__ import annotations

import json
from collections.abc import Iterator

from engine.data.file import File
from engine.data.source import Corpus, Request
from engine.data.tokenizer import Piece
from engine.data.tokens import corpus_of
from engine.errors import Refused

BOM = b"\xef\xbb\xbf"


def open_corpus(request: Request) -> Corpus:
    if request.path is None:
        raise Refused("data.type='jsonl' needs a file: set DATA or data.path")
    return corpus_of(JsonLines(request.path), request)


class JsonLines:
    """Documents joined by end-of-text; empty lines between them are passed over."""

    kind = "jsonl"

    def __init__(self, path: str) -> None:
        self._file = File(path)
        self.name = self._file.name
        self.size = self._file.size

    @property
    def digest(self) -> str:
        return self._file.digest

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
            raise Refused(
                f"{where}: not UTF-8: byte {offset + error.start:,} "
                f"is 0x{line[error.start]:02x} ({error.reason})"
            ) from None
        except json.JSONDecodeError as error:
            raise Refused(
                f"{where}: not JSON: {error.msg} (column {error.colno}); "
                'each line is to be an object with a "text"'
            ) from None
        except (ValueError, RecursionError) as error:  # a number too long, nesting too deep
            raise Refused(f"{where}: not JSON that can be read: {error}") from None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise Refused(f'{where}: not an object with a "text" that is a string')
        text: str = value["text"]
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused(f'{where}: "text" holds half of a surrogate pair') from None
        return text
