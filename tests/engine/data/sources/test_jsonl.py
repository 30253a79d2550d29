"""JSON lines, compared with Python's json and a join of the texts."""

import json
from pathlib import Path

import pytest

from engine.data.input_files import data_file
from engine.data.sources.jsonl import open_corpus
from engine.errors import UserError
from tests.engine.data.support import Ask, ids_of, text_of, tokenizer_of

TEXTS = ["first document\n", "zweites, größer 🙂\u2028 und mehr", "", 'the third: "quoted" \\ end']


def _write(folder: Path, content: bytes) -> Path:
    path = folder / "corpus.jsonl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\n\n \n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_documents_are_separated_by_end_of_text(
    tmp_path: Path, ask: Ask, newline: bytes, last: bool, ascii_only: bool
) -> None:
    lines = [json.dumps({"id": 1, "text": t}, ensure_ascii=ascii_only).encode() for t in TEXTS]
    path = _write(tmp_path, newline.join(lines) + (newline if last else b""))
    corpus = open_corpus(ask(path, seq_len=4))
    assert text_of(corpus) == "\x03".join(TEXTS)


def test_gpt2_documents_are_encoded_separately(tmp_path: Path, ask: Ask) -> None:
    """Each document has the ids that it has alone: no merge crosses end-of-text."""
    texts = ["one two", " three", "<|endoftext|>", "four\n", "\n five"]
    path = _write(tmp_path, "\n".join(json.dumps({"text": t}) for t in texts).encode())
    corpus = open_corpus(ask(path, tokenizer="gpt2", seq_len=2, validation=0.2))
    expected = [i for t in texts for i in [*tokenizer_of(corpus).encode(t).tolist(), 50256]][:-1]
    assert ids_of(corpus).tolist() == expected


def test_lines_longer_than_a_block_are_read(
    tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_file, "BLOCK", 5)
    path = _write(tmp_path, "\n".join(json.dumps({"text": t}) for t in TEXTS).encode())
    corpus = open_corpus(ask(path, seq_len=4))
    assert text_of(corpus) == "\x03".join(TEXTS)


def test_byte_order_mark_is_skipped(tmp_path: Path, ask: Ask) -> None:
    line = json.dumps({"text": "\ufeffabc" * 20}).encode()
    corpus = open_corpus(ask(_write(tmp_path, b"\xef\xbb\xbf" + line), seq_len=4))
    assert text_of(corpus) == "\ufeffabc" * 20


GOOD = b'{"text": "good"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "bad}', r"line 3: not JSON: Unterminated string starting at \(column 10\)"),
        (b"{'text': 1}", r"line 3: not JSON: .*; each line must be an object with a \"text\""),
        (
            b'{"txt": "a"}',
            r"line 3: has no \"text\"; set data.key to one of its keys: 'txt'$",
        ),
        (b'{"text": 5}', r'line 3: not an object with a "text" that is a string'),
        (b'{"text": null}', r'line 3: not an object with a "text" that is a string'),
        (b'["text"]', r'line 3: not an object with a "text"'),
        (b'"text"', r'line 3: not an object with a "text"'),
        (b'{"text": "\\ud800"}', r"line 3: .*surrogate"),
        (b"[" * 100_000, r"line 3: not JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}", r"line 3: not JSON"),
        (b'{"text": "a\xffb"}', r"line 3: not UTF-8: byte 45 is 0xff"),
    ],
)
def test_invalid_line_is_rejected_by_number(
    tmp_path: Path, ask: Ask, line: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_corpus(ask(_write(tmp_path, GOOD + GOOD + line + b"\n" + GOOD)))
    assert not list((tmp_path / "cache").glob("*.tokens"))


def test_invalid_byte_is_counted_from_the_start_of_the_file(tmp_path: Path, ask: Ask) -> None:
    content = b"\xef\xbb\xbf" + b'{"text": "a\xff"}'
    with pytest.raises(UserError, match=f"line 1: .*byte {content.index(0xFF)} is"):
        open_corpus(ask(_write(tmp_path, content)))


def test_missing_path_or_empty_file_is_rejected(tmp_path: Path, ask: Ask) -> None:
    with pytest.raises(UserError, match="needs a file"):
        open_corpus(ask())
    with pytest.raises(UserError, match="contains no text"):
        open_corpus(ask(_write(tmp_path, b"\n\n")))
    with pytest.raises(UserError, match="contains no text"):
        open_corpus(ask(_write(tmp_path, b'{"text": ""}\n')))
    with pytest.raises(UserError, match="is empty"):
        open_corpus(ask(_write(tmp_path, b"")))


def test_text_and_jsonl_have_separate_token_files(tmp_path: Path, ask: Ask) -> None:
    from engine.data.sources import text

    path = _write(tmp_path, GOOD * 20)
    assert text.open_corpus(ask(path)).fingerprint != open_corpus(ask(path)).fingerprint
