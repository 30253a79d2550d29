"""Files of any name by their content: text, JSON lines, JSON arrays."""

from __future__ import annotations

from engine.data.data_file import File
from engine.data.detect_format import format_of
from engine.data.documents import Documents, read_files
from engine.data.source import Corpus, Request
from engine.data.sources import json, jsonl, text
from engine.data.tokenize import corpus_of


def open_corpus(request: Request) -> Corpus:
    if request.path is None:
        return text.open_corpus(request)

    def read(file: File) -> Documents:
        match format_of(file):
            case "jsonl":
                return jsonl.JsonLines(file, request.key)
            case "json":
                return json.JsonArray(file, request.key)
            case _:
                return text.TextFile(file)

    return corpus_of(read_files(request.path, request.cache, read), request)
