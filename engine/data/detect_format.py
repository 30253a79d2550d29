"""The format of a file by its content: text, JSON lines, a JSON array, or one that is not read."""

from __future__ import annotations

import codecs
import re
import shlex
from pathlib import Path

from engine.data.data_file import COMPRESSED_SUFFIXES, DataFile
from engine.errors import UserError

TABLES = "convert it to JSON lines, such as by pandas' to_json(orient='records', lines=True)"
TOKENS = "cuboid needs the text that they were made from"
TO_UTF8 = "iconv -f {encoding} -t UTF-8 {path} > NEW.txt"
# (place, bytes there, name, remedy)
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
    (0, b"\x93NUMPY", "a NumPy array", TOKENS),
    (0, b"MMIDIDX", "the index of a Megatron data set of token ids", TOKENS),
    (0, b"\x80\x04\x95", "a Python pickle", TABLES),
    (0, b"GGUF", "a GGUF model", "data.path takes text, --init-from a model"),
    (0, b"\x89PNG", "a PNG picture", "data.path takes text"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "data.path takes text"),
)
KEY = rb'"[^"\n]*"\s*:'
OBJECT = re.compile(rb"\{[ \t]*" + KEY)  # begins on the first line
OPEN_OBJECT = re.compile(rb"\{[ \t]*\r?\n\s*" + KEY)  # begins on the second line
ARRAY = re.compile(rb'\[\s*(?:\{\s*"|"(?:[^"\\]|\\.)*(?:"\s*[,\]]|\Z))', re.DOTALL)
JSON_LINES, JSON_ARRAY = {".jsonl", ".ndjson"}, ".json"
TEXT_CONTROLS = frozenset(b"\t\n\v\f\r\x1b")


def format_of(file: DataFile) -> str:
    """Name the source that reads a file: 'text', 'jsonl' or 'json'.

    Raises UserError for another format, with its name and what to do.
    """
    if reason := not_text(file):
        raise UserError(f"{file.name} is {reason}")
    start = file.head.removeprefix(codecs.BOM_UTF8).lstrip()
    path = Path(file.path.name)
    name = path.stem if path.suffix.lower() in COMPRESSED_SUFFIXES else path.name
    suffix = Path(name).suffix.lower()
    if OPEN_OBJECT.match(start):
        raise UserError(
            f"{file.name} looks like one JSON object over several lines; JSON lines and arrays are "
            "read, and data.type='text' learns it as it is"
        )
    if ARRAY.match(start) or (suffix == JSON_ARRAY and start.startswith(b"[")):
        return "json"
    # By its name, so that what keeps it from being read as JSON lines is named
    return "jsonl" if OBJECT.match(start) or suffix in JSON_LINES else "text"


def not_text(file: DataFile) -> str | None:
    """Say which format the first bytes of a file are of and what to do with it, if not UTF-8 text.
    Continues a sentence that begins with the file's name."""
    head, path = file.head, shlex.quote(str(file.path))
    for place, magic, name, remedy in BINARY:
        if head[place:].startswith(magic):
            return f"{name}, not text: {remedy.format(path=path)}"
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors model, not text: data.path takes text, --init-from a model"
    if encoding := _utf_16(head):
        return f"{encoding} text, not UTF-8: {TO_UTF8.format(encoding=encoding, path=path)}"
    try:
        codecs.utf_8_decode(head, "strict", False)
    except UnicodeDecodeError:
        if _has_controls(head):
            return f"binary; if it holds token ids, {TOKENS}"
        command = TO_UTF8.format(encoding="WINDOWS-1252", path=path)
        return f"not UTF-8; if it is Latin-1 or Windows text: {command}"
    if b"\0" in head:
        return f"binary; if it holds token ids, {TOKENS} (data.type='text' learns it as it is)"
    return None


def _utf_16(head: bytes) -> str | None:
    """The name of a UTF-16 or UTF-32 encoding: by the mark at the start, or by half the bytes being
    zero and the others text."""
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
    """Whether there are control characters that text has no use for."""
    return any(byte < 32 and byte not in TEXT_CONTROLS for byte in data)
