"""Files in the format that their content has: text, JSON lines or JSON arrays."""

from __future__ import annotations

from engine.data.input_files.data_file import DataFile
from engine.data.input_files.detect_format import format_of
from engine.data.input_files.documents import Documents, read_files
from engine.data.source import Corpus, SourceRequest
from engine.data.sources import json, jsonl, text
from engine.data.tokenize import build_corpus


def open_documents(request: SourceRequest) -> Documents:
    if request.path is None:
        return text.open_documents(request)

    def read(file: DataFile) -> Documents:
        return documents_of(file, request.key)

    return read_files(request.path, request.cache, read)


def open_corpus(request: SourceRequest) -> Corpus:
    return build_corpus(open_documents(request), request)


def documents_of(file: DataFile, key: str) -> Documents:
    """Return the documents of a file. Raises UserError for an unsupported format.

    ``key``: the key of the text in JSON objects.
    """
    match format_of(file):
        case "jsonl":
            return jsonl.JsonLines(file, key)
        case "json":
            return json.JsonArray(file, key)
        case _:
            return text.TextFile(file)
