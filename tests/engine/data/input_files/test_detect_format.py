"""Formats are detected by content under any name; unsupported ones are named with a remedy."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save as safetensors

from engine.data.input_files import data_file
from engine.data.input_files.data_file import DataFile
from engine.data.source import open_corpus
from engine.data.sources import json as json_source
from engine.data.sources.json import JsonArray
from engine.errors import UserError
from tests.engine.data.support import Ask, ids_of, text_of

TEXTS = ["first document\n", "zweites, größer 🙂\u2028 und mehr", 'the third: "quoted" \\ [{end']
OBJECTS = [{"id": 1, "text": text} for text in TEXTS]
JOINED = "\x03".join(TEXTS)
LINES = "\n".join(map(json.dumps, OBJECTS))
POEM = "Whan that Aprille with his shoures soote, ça ira: größer\n" * 40


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.txt", "a"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        "\ufeff" + LINES,
        "\n \n" + LINES + "\n",
        json.dumps(OBJECTS),
        json.dumps(OBJECTS, ensure_ascii=False, indent=2),
        json.dumps(TEXTS),
        " [ " + " ,\n".join(json.dumps(text) for text in TEXTS) + "]\n",
    ],
)
def test_json_is_detected_under_any_name(
    tmp_path: Path, ask: Ask, name: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_file, "BLOCK", 7)  # values and characters lie across blocks
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert text_of(open_corpus("auto", ask(tmp_path / name, seq_len=4))) == JOINED


@pytest.mark.parametrize(
    "text",
    [
        "[Enter Hamlet] To be, or not",
        '["Hello," she said, "again"]',
        "[link](https://example.org) and more",
        "[1, 2, 3] are numbers",
        "{ a brace of hares",
        "{\n  int a = 1;\n}\n",
        '"quoted", they said',
        "'text': 'of a dict'",
        "\ufeffwith a mark",
    ],
)
def test_text_that_starts_like_json_is_text(tmp_path: Path, ask: Ask, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text * 9, encoding="utf-8")
    found = text_of(open_corpus("auto", ask(path, seq_len=4)))
    assert found == (text * 9).removeprefix("\ufeff")


def test_data_type_text_overrides_the_detected_format(tmp_path: Path, ask: Ask) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)
    assert text_of(open_corpus("text", ask(path, seq_len=4))) == LINES
    path.write_bytes(b"a\0b\x01" * 20)
    assert text_of(open_corpus("text", ask(path, seq_len=4))) == "a\0b\x01" * 20


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_give_the_same_data(
    tmp_path: Path, ask: Ask, pack: Callable[[bytes], bytes]
) -> None:
    for name, content in (("a.txt", POEM), ("b.jsonl", LINES)):
        plain, packed = tmp_path / name, tmp_path / f"packed-{name}.x"
        plain.write_text(content, encoding="utf-8")
        packed.write_bytes(pack(content.encode()))
        one, other = (open_corpus("auto", ask(path, seq_len=4)) for path in (plain, packed))
        assert text_of(one) == text_of(other)
        assert one.fingerprint == other.fingerprint
    packed.write_bytes(pack(POEM.encode())[:-20])
    with pytest.raises(UserError, match="is a corrupt compressed file: "):
        open_corpus("auto", ask(packed))


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("XZ", lzma.compress)]
)
def test_suffix_before_the_compression_suffix_counts(
    tmp_path: Path, ask: Ask, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    """The content does not start like supported JSON, so only the name decides."""
    for name, content, message in (
        ("a.jsonl", b"no JSON here\n", "line 1: not JSON"),
        ("a.json", b"[no JSON here]\n", "element 1: not JSON"),
    ):
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(pack(content))
        with pytest.raises(UserError, match=message):
            open_corpus("auto", ask(path))


def of_zip(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", data)
    return stream.getvalue()


def of_tar(data: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def of_numpy(ids: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, ids)
    return stream.getvalue()


def of_torch() -> bytes:
    stream = io.BytesIO()
    torch.save(torch.arange(9), stream)
    return stream.getvalue()


IDS = np.arange(20_000, 24_000)


def name_of_format(value: bytes | str) -> str:
    """Name a case by its message: the bytes of archives have the time of their creation."""
    return value if isinstance(value, str) else "content"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (of_zip(POEM.encode()), "is a zip archive, not text; unzip "),
        (of_torch(), "is a zip archive, not text; "),
        (of_tar(POEM.encode()), "is a tar archive, not text; tar -xf "),
        (b"\x28\xb5\x2f\xfd" + bytes(40), "is compressed by zstd, not text; zstd -d "),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "is a PDF document, not text; pdftotext "),
        (b"PAR1\x15\x04", "is a Parquet file, not text; convert it to JSON lines, such as by "),
        (
            of_numpy(IDS),
            "is a NumPy array, not text; for the shards of `cuboid prepare` set data.type",
        ),
        (safetensors({"a": IDS}), "is a safetensors model, not text; "),
        (
            IDS.astype("<u2").tobytes(),
            "is binary; if it contains token ids, cuboid needs the text ",
        ),
        (
            IDS.astype("<u4").tobytes(),
            "is binary; if it contains token ids, cuboid needs the text ",
        ),
        ((IDS % 65).astype("<u2").tobytes(), "is binary; if it contains token ids, "),
        (POEM.encode("utf-16"), "is UTF-16 text, not UTF-8; iconv -f UTF-16 -t UTF-8 "),
        (POEM.encode("utf-16-le"), "is UTF-16LE text, not UTF-8; iconv -f UTF-16LE -t UTF-8 "),
        (POEM.encode("utf-16-be"), "is UTF-16BE text, not UTF-8; iconv -f UTF-16BE -t UTF-8 "),
        (POEM.encode("utf-32"), "is UTF-32 text, not UTF-8; iconv -f UTF-32 -t UTF-8 "),
        (
            POEM.encode("latin-1"),
            "if it is Latin-1 or Windows text, iconv -f WINDOWS-1252 -t UTF-8",
        ),
        (b'{\n  "data": [\n', "looks like one JSON object over several lines, which is not "),
        (b'{"text": "cut\n', "line 1: not JSON: .*; data.type='text' trains on the file as text"),
    ],
    ids=name_of_format,
)
def test_unsupported_formats_are_named_in_one_line(
    tmp_path: Path, ask: Ask, content: bytes, message: str
) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refusal:
        open_corpus("auto", ask(path))
    (line,) = str(refusal.value).splitlines()
    assert line.startswith(f"data.path={str(path)!r}")


@pytest.mark.skipif(shutil.which("iconv") is None, reason="iconv is not installed")
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_named_conversion_command_works(tmp_path: Path, ask: Ask, encoding: str) -> None:
    path = tmp_path / "it's mine.txt"
    path.write_bytes(POEM.encode(encoding))
    with pytest.raises(UserError) as refusal:
        open_corpus("auto", ask(path))
    command = str(refusal.value).partition(" iconv")[2]
    subprocess.run(f"iconv{command}", shell=True, check=True, cwd=tmp_path)
    assert text_of(open_corpus("auto", ask(tmp_path / "NEW.txt", seq_len=4))) == POEM


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a", 5]', 'element 2: not an object with a "text"'),
        (
            '[{"text": "a"}, {"txt": "b", "n": 1}]',
            "element 2: has no \"text\"; set data.key to one of its keys: 'txt', 'n'",
        ),
        ('["a" "b"]', "element 1: followed by neither a comma nor ]"),
        ('["a", ]', "element 2: not JSON: Expecting value"),
        ('["a", "b', "element 2: not JSON: Unterminated string"),
        ('["ab\\ud800c"]', "element 1: the string contains half of a surrogate pair"),
        (
            '["a", {"text": "ab\\ud800c"}]',
            'element 2: "text" contains half of a surrogate pair',
        ),
        ('["a"] more', "text follows the end of the array"),
        ("[]", "contains no text"),
    ],
)
def test_invalid_array_is_rejected_by_element_number(
    tmp_path: Path, ask: Ask, content: str, message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError) as refusal:
        open_corpus("json", ask(path))
    assert message in str(refusal.value)


def test_blocks_may_end_anywhere_in_an_element(
    tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = (
        'true, false, null, NaN, -Infinity, -1.5e+10, [ ], { }, "\\ud83d\\ude42\\\\", {"a": [0]}'
    )
    content = f'[{{ "of any kind" : [{values}], "text" : "\\u00e9\\ud83d\\ude42\\"" }} , "last"]'
    path = tmp_path / "a.json"
    path.write_text(content)
    for size in range(1, len(content)):
        monkeypatch.setattr(data_file, "BLOCK", size)
        pieces = JsonArray(DataFile(path), "text").pieces()
        assert list(pieces) == ['\u00e9\U0001f642"', None, "last"], f"blocks of {size}"


@pytest.fixture
def longest_held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return the maximum number of characters of an array in memory at once, in blocks of 64."""
    longest = 0
    more = json_source._JsonStream._more

    def measured(self: json_source._JsonStream, least: int = 1) -> bool:
        nonlocal longest
        found = more(self, least)
        longest = max(longest, len(self._text))
        return found

    monkeypatch.setattr(data_file, "BLOCK", 64)
    monkeypatch.setattr(json_source._JsonStream, "_more", measured)
    return lambda: longest


def test_memory_is_bounded_by_the_longest_element(
    tmp_path: Path, ask: Ask, longest_held: Callable[[], int]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": f"{number:040d}"} for number in range(300)]))
    assert len(ids_of(open_corpus("auto", ask(path, seq_len=4)))) == 300 * 41 - 1
    assert longest_held() <= 4 * 64


@pytest.mark.parametrize("bad", ['{"text": "a" "b"}', '{"text": nul}', '{"text": "\n"}', "{5: 6}"])
@pytest.mark.parametrize("before", range(0, 64, 7))
def test_malformed_element_is_rejected_without_reading_the_rest(
    tmp_path: Path, ask: Ask, longest_held: Callable[[], int], bad: str, before: int
) -> None:
    path = tmp_path / "a.json"
    good = json.dumps({"text": "x" * 40})
    path.write_text(f"[{before * ' '}{', '.join([good, bad, *[good] * 300])}]")
    with pytest.raises(UserError, match="element 2: not JSON"):
        open_corpus("json", ask(path))
    assert longest_held() <= 4 * 64


@pytest.mark.parametrize("as_array", [False, True])
def test_data_key_selects_the_text(tmp_path: Path, ask: Ask, as_array: bool) -> None:
    path = tmp_path / "a.json"
    objects = [{"text": "no", "content": text} for text in TEXTS]
    path.write_text(json.dumps(objects) if as_array else "\n".join(map(json.dumps, objects)))
    corpus = open_corpus("auto", ask(path, seq_len=4, key="content"))
    assert text_of(corpus) == JOINED
    other = open_corpus("auto", ask(path, seq_len=1, validation=0.3))
    assert text_of(other) == "\x03".join(["no"] * 3)
    with pytest.raises(
        UserError, match=r"has no \"body\"; set data.key to one of its keys: 'text', 'content'$"
    ):
        open_corpus("auto", ask(path, key="body"))
