"""JSON arrays of objects or strings; each element is a document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from engine.data.input_files.data_file import DataFile
from engine.data.input_files.documents import Documents, FileDocuments, read_files
from engine.data.source import Corpus, SourceRequest
from engine.data.sources.jsonl import encodable, kind_of, text_in
from engine.data.sources.text import TextFile
from engine.data.tokenize import build_corpus
from engine.data.tokenizer import Piece
from engine.errors import UserError

# The longest escape sequence. If its end is missing, the JSON error is at its first character.
LONGEST_ESCAPE = len(r"\ud83d\ude42")
SPACE = re.compile(r"[ \t\r\n]*")


def open_documents(request: SourceRequest) -> Documents:
    if request.path is None:
        raise UserError("data.type='json' needs a file; set DATA or data.path")
    return read_files(request.path, request.cache, lambda file: JsonArray(file, request.key))


def open_corpus(request: SourceRequest) -> Corpus:
    return build_corpus(open_documents(request), request)


class JsonArray(FileDocuments):
    """The elements of an array, separated by end-of-text. At most one element and one block of the
    file are in memory."""

    def __init__(self, file: DataFile, key: str) -> None:
        super().__init__(file)
        self._text, self._key = TextFile(file), key
        self.kind = kind_of("json", key)

    def pieces(self) -> Iterator[Piece]:
        for number, value in enumerate(self._elements(), start=1):
            if number > 1:
                yield None
            where = f"{self.name}, element {number}"
            if isinstance(value, str):
                yield encodable(value, f"{where}: the string")
            else:
                yield text_in(value, self._key, where)

    def _elements(self) -> Iterator[object]:
        stream = _JsonStream(piece or "" for piece in self._text.pieces())
        if stream.next() != "[":
            raise UserError(
                f"{self.name} is not a JSON array: its first character is not [; "
                "set data.type='auto' to read the format that it has"
            )
        stream.take()
        number, after = 0, stream.next()
        if after == "]":
            stream.take()
        while after != "]":
            number += 1
            try:
                yield stream.value()
            except (ValueError, RecursionError) as error:
                what = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise UserError(
                    f"{self.name}, element {number}: not JSON: {what}; correct the file, or train "
                    "on it as text by data.type='text'"
                ) from None
            after = stream.next()
            if after not in (",", "]"):
                raise UserError(
                    f"{self.name}, element {number}: followed by neither a comma nor ]; correct "
                    "the file"
                )
            stream.take()
        if stream.next():
            raise UserError(
                f"{self.name}: text follows the end of the array; remove it, or write one document "
                "per line for data.type='jsonl'"
            )


class _JsonStream:
    """A stream of text, parsed value by value."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks, self._text, self._place = blocks, "", 0
        self._decoder = json.JSONDecoder()

    def next(self) -> str:
        """Return the next character that is no space, without consuming it; "" at the end."""
        while True:
            match = SPACE.match(self._text, self._place)
            self._place = match.end() if match else self._place
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def take(self) -> None:
        """Consume the character that ``next`` returned."""
        self._place += 1

    def value(self) -> object:
        """Parse and consume a value. Raises ValueError."""
        self.next()  # skips spaces
        while True:
            try:
                value, self._place = self._decoder.raw_decode(self._text, self._place)
                return value
            except json.JSONDecodeError as error:
                # Doubles the text, so that a long element is parsed a logarithmic number of times
                if not (
                    self._may_be_truncated(error) and self._more(len(self._text) - self._place)
                ):
                    raise

    def _may_be_truncated(self, error: json.JSONDecodeError) -> bool:
        """Return whether ``error`` may occur only because the rest of the value is unread."""
        unterminated = error.msg.startswith("Unterminated string")
        return unterminated or error.pos >= len(self._text) - LONGEST_ESCAPE

    def _more(self, least: int = 1) -> bool:
        """Read at least ``least`` more characters, or up to the end. Return False at the end."""
        parts, added = [self._text[self._place :]], 0
        for block in self._blocks:
            parts.append(block)
            added += len(block)
            if added >= least:
                break
        self._text, self._place = "".join(parts), 0
        return added > 0
