"""UTF-8 text: each file is one document. The default is a text that ships with Python."""

from __future__ import annotations

import codecs
import hashlib
import importlib
import platform
from collections.abc import Iterator

from engine.data.input_files.detect_format import not_text
from engine.data.input_files.documents import Documents, FileDocuments, read_files
from engine.data.source import Corpus, SourceRequest
from engine.data.tokenize import build_corpus
from engine.data.tokenizer import Piece
from engine.errors import UserError

BOM = "\ufeff"


def open_documents(request: SourceRequest) -> Documents:
    if request.path is None:
        return BuiltInText()
    return read_files(request.path, request.cache, TextFile)


def open_corpus(request: SourceRequest) -> Corpus:
    return build_corpus(open_documents(request), request)


class TextFile(FileDocuments):
    """The text of a file, with its line ends and without a byte-order mark at its start."""

    kind = "text"

    def pieces(self) -> Iterator[Piece]:
        offset, rest = 0, b""
        for block in self._file.blocks():
            data = rest + block
            text, used = self._decode(data, offset, final=False)
            yield text.removeprefix(BOM) if offset == 0 else text
            offset, rest = offset + used, data[used:]
        self._decode(rest, offset, final=True)  # raises if the last character is incomplete

    def _decode(self, data: bytes, offset: int, *, final: bool) -> tuple[str, int]:
        try:
            return codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            detected = not_text(self._file)
            raise UserError(
                f"{self.name} is not UTF-8: byte {offset + error.start:,} "
                f"is 0x{data[error.start]:02x} ({error.reason})"
                + (f"; it is {detected}" if detected else "")
            ) from None


class BuiltInText:
    """The help topics of CPython's language reference, which ship with Python."""

    kind = "text"

    def __init__(self) -> None:
        try:
            topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        except ImportError:
            raise UserError(
                "this Python has no pydoc_data, the default text; set DATA or data.path"
            ) from None
        self._text = "\n".join(topics[name] for name in sorted(topics))
        content = self._text.encode()
        self.digest = hashlib.sha256(content).hexdigest()
        self.size = len(content)
        version = ".".join(platform.python_version_tuple()[:2])
        self.name = (
            f"the built-in corpus (help topics of Python {version}, as neither DATA nor data.path "
            "is given)"
        )

    def pieces(self) -> Iterator[Piece]:
        yield self._text
