"""Detects the format of a file by its content: text, JSON lines, a JSON array or unsupported."""

from __future__ import annotations

import codecs
import re
import shlex
from pathlib import Path

from engine.data.input_files.data_file import DataFile
from engine.errors import UserError
from engine.files.compression import COMPRESSED_SUFFIXES

TABLES = "convert it to JSON lines, such as by pandas' to_json(orient='records', lines=True)"
TOKENS = "cuboid needs the text that they were made from"
SHARDS = "for the shards of `cuboid prepare` set data.type='tokens'"
TO_UTF8 = "iconv -f {encoding} -t UTF-8 {path} > NEW.txt"
# (offset of the magic number, magic number, name, remedy)
BINARY = (
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "zstd -d {path}"),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4", "lz4 -d {path}"),
    (0, b"PK\x03\x04", "a zip archive", "unzip {path}"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {path}"),
    (257, b"ustar", "a tar archive", "tar -xf {path}"),
    (0, b"%PDF-", "a PDF document", "pdftotext {path}"),
    (0, b"PAR1", "a Parquet file", TABLES),
    (0, b"ARROW1", "an Arrow file", TABLES),
    (0, b"\x89HDF\r\n", "an HDF5 file", TABLES),
    (0, b"SQLite format 3\0", "an SQLite database", TABLES),
    (0, b"Obj\x01", "an Avro file", TABLES),
    (0, b"\x93NUMPY", "a NumPy array", SHARDS),
    (0, b"MMIDIDX", "the index of a Megatron data set of token ids", TOKENS),
    (0, b"\x80\x04\x95", "a Python pickle", TABLES),
    (0, b"GGUF", "a GGUF model", "data.path takes text, --init-from a model"),
    (0, b"\x89PNG", "a PNG picture", "data.path takes text"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "data.path takes text"),
)
KEY = rb'"[^"\n]*"\s*:'
OBJECT = re.compile(rb"\{[ \t]*" + KEY)  # its first key is on the first line
OPEN_OBJECT = re.compile(rb"\{[ \t]*\r?\n\s*" + KEY)  # its first key is on the second line
ARRAY = re.compile(rb'\[\s*(?:\{\s*"|"(?:[^"\\]|\\.)*(?:"\s*[,\]]|\Z))', re.DOTALL)
JSON_LINES, JSON_ARRAY = {".jsonl", ".ndjson"}, ".json"
TEXT_CONTROLS = frozenset(b"\t\n\v\f\r\x1b")


def format_of(file: DataFile) -> str:
    """Return the name of the source that reads a file: 'text', 'jsonl' or 'json'.

    Raises UserError for any other format, with its name and a remedy.
    """
    if reason := not_text(file):
        raise UserError(f"{file.name} is {reason}")
    start = file.head.removeprefix(codecs.BOM_UTF8).lstrip()
    path = Path(file.path.name)
    name = path.stem if path.suffix.lower() in COMPRESSED_SUFFIXES else path.name
    suffix = Path(name).suffix.lower()
    if OPEN_OBJECT.match(start):
        raise UserError(
            f"{file.name} looks like one JSON object over several lines, which is not supported; "
            "convert it to JSON lines or an array, or set data.type='text' to train on it as text"
        )
    if ARRAY.match(start) or (suffix == JSON_ARRAY and start.startswith(b"[")):
        return "json"
    # A .jsonl file of other content goes to the jsonl source, which reports the faulty line
    return "jsonl" if OBJECT.match(start) or suffix in JSON_LINES else "text"


def not_text(file: DataFile) -> str | None:
    """Return the name of a file's format and a remedy, unless its head is UTF-8 text. The result
    continues a sentence that begins with the file's name."""
    head, path = file.head, shlex.quote(str(file.path))
    for offset, magic, name, remedy in BINARY:
        if head[offset:].startswith(magic):
            return f"{name}, not text; {remedy.format(path=path)}"
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors model, not text; data.path takes text, --init-from a model"
    if encoding := _utf_16(head):
        return f"{encoding} text, not UTF-8; {TO_UTF8.format(encoding=encoding, path=path)}"
    try:
        codecs.utf_8_decode(head, "strict", False)
    except UnicodeDecodeError:
        if _has_controls(head):
            return f"binary; if it contains token ids, {TOKENS}"
        command = TO_UTF8.format(encoding="WINDOWS-1252", path=path)
        return f"not UTF-8; if it is Latin-1 or Windows text, {command}"
    if b"\0" in head:
        return f"binary; if it contains token ids, {TOKENS} (data.type='text' trains on it as text)"
    return None


def _utf_16(head: bytes) -> str | None:
    """Return the name of a UTF-16 or UTF-32 encoding, detected by the byte-order mark or because
    every other byte is zero and the rest are text; None for any other encoding."""
    for mark, name in ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16")):
        if head.startswith((mark, mark[::-1])):
            return name
    for name, zeros, others in (
        ("UTF-16LE", head[1::2], head[::2]),
        ("UTF-16BE", head[::2], head[1::2]),
    ):
        if len(head) > 8 and not any(zeros) and 0 not in others and not _has_controls(others):
            return name
    return None


def _has_controls(data: bytes) -> bool:
    """Return whether there are control characters that text does not contain."""
    return any(byte < 32 and byte not in TEXT_CONTROLS for byte in data)
