"""The text source: tokens decode to the content of the file, or the file is rejected by name."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.data import tokenize
from engine.data.input_files import data_file
from engine.data.sources.text import TextFile, open_corpus
from engine.data.tokenizer import Tokenizer, tokenizer_type
from engine.errors import UserError
from tests.engine.data.support import Ask, ids_of, text_of, tokenizer_of


def _write(folder: Path, content: bytes | str) -> Path:
    path = folder / "corpus.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_tokens_decode_to_the_text(
    tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch, tokenizer: str, block: int
) -> None:
    content = "Zażółć gęślą jaźń 🙂\r\n東京  is big,\rdon't you think?\n\n\x00" * 5
    monkeypatch.setattr(data_file, "BLOCK", block)
    corpus = open_corpus(ask(_write(tmp_path, content), tokenizer=tokenizer, seq_len=4))
    assert text_of(corpus) == content
    whole = tokenizer_of(corpus).encode(content)
    assert np.array_equal(ids_of(corpus), whole)


@pytest.mark.parametrize("block", [1, 3, 1 << 20])  # a later block may start with one
def test_byte_order_mark_is_skipped_only_at_the_start(
    tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(data_file, "BLOCK", block)
    content = "\ufeffbyte  order  " * 9
    corpus = open_corpus(ask(_write(tmp_path, content)))
    assert text_of(corpus) == content[1:]


def test_default_is_the_built_in_corpus_and_is_reported(ask: Ask) -> None:
    from pydoc_data.topics import topics

    corpus = open_corpus(ask())
    assert "neither DATA nor data.path" in corpus.description
    assert "built-in corpus" in corpus.description
    text = text_of(corpus)
    assert text == "\n".join(topics[name] for name in sorted(topics))
    assert len(text) > 300_000
    assert tokenizer_of(corpus).state() == {"characters": "".join(sorted(set(text)))}


def test_built_in_corpus_has_a_fixed_order(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    topics = {"b": "second " * 20, "a": "first " * 20}
    monkeypatch.setattr("pydoc_data.topics.topics", topics)
    assert text_of(open_corpus(ask())) == topics["a"] + "\n" + topics["b"]


def test_description_has_the_file_its_tokens_and_vocabulary(tmp_path: Path, ask: Ask) -> None:
    path = _write(tmp_path, "abcd" * 300)
    corpus = open_corpus(ask(path))
    assert corpus.description == f"data.path={str(path)!r}: 1,200 tokens by char, vocabulary 4"


def test_token_ids_out_of_range_are_rejected(
    tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.data.tokenizers.char import Char

    monkeypatch.setattr(Char, "encode", lambda self, text: np.full(len(text), 9, np.uint32))
    with pytest.raises(UserError, match="token id 9, out of its own range 0 to 1"):
        open_corpus(ask(_write(tmp_path, "ab" * 50)))
    assert not list((tmp_path / "cache").glob("*.tokens"))


@pytest.mark.parametrize(
    ("content", "offset", "byte"),
    [
        (b"\xff\xfea\x00", "0", "0xff"),
        (b"abc\x80def", "3", "0x80"),
        (b"abcdef\xe6\x9d", "6", "0xe6"),  # cut off in a character
        (b"a" * 1_500_000 + b"\xc3(", "1,500,000", "0xc3"),  # in a later block
        (("a" + "é" * 600_000).encode() + b"\xff", "1,200,001", "0xff"),  # across a cut
    ],
)
def test_invalid_utf_8_is_rejected_with_the_byte(
    tmp_path: Path, ask: Ask, content: bytes, offset: str, byte: str
) -> None:
    with pytest.raises(UserError, match=rf"corpus.txt' is not UTF-8: byte {offset} is {byte} \("):
        open_corpus(ask(_write(tmp_path, content)))
    assert not list((tmp_path / "cache").glob("*.tokens"))


def test_unreadable_files_are_rejected_by_name(tmp_path: Path, ask: Ask) -> None:
    with pytest.raises(UserError, match=r"data.path='nowhere.txt' does not exist in /"):
        open_corpus(ask("nowhere.txt"))
    with pytest.raises(UserError, match=r"corpus.txt/x' does not exist"):
        open_corpus(ask(_write(tmp_path, "a") / "x"))
    with pytest.raises(UserError, match=r"corpus.txt' is empty"):
        open_corpus(ask(_write(tmp_path, "")))
    with pytest.raises(UserError, match=r"is a device; a file is needed"):
        open_corpus(ask("/dev/null"))
    with pytest.raises(UserError, match=r"contains no text"):
        open_corpus(ask(_write(tmp_path, "\ufeff")))


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_file_without_permission_is_rejected(tmp_path: Path, ask: Ask) -> None:
    path = _write(tmp_path, "a")
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        open_corpus(ask(path))


def test_file_changed_during_reading_is_rejected(tmp_path: Path, ask: Ask) -> None:
    path = _write(tmp_path, "ab" * 100)
    documents = TextFile(data_file.DataFile(path))
    assert documents.digest
    _write(tmp_path, "ba" * 100)
    with pytest.raises(UserError, match="changed while it was read"):
        tokenize.build_corpus(documents, ask(path))
    assert not list((tmp_path / "cache").glob("*.tokens"))


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_text_without_boundaries_is_encoded_in_bounded_pieces(
    tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    """The longest encoded piece of a text without spaces is bounded, too."""
    monkeypatch.setattr(data_file, "BLOCK", 100)
    monkeypatch.setattr(tokenize, "MAX_UNBROKEN_LENGTH", 1000)
    kind, longest = tokenizer_type(tokenizer), 0
    encode = kind.encode

    def watched(self: Tokenizer, text: str) -> NDArray[np.uint32]:
        nonlocal longest
        longest = max(longest, len(text))
        return encode(self, text)

    monkeypatch.setattr(kind, "encode", watched)
    letters = "".join(random.Random(1).choices("abc", k=20_000))
    corpus = open_corpus(ask(_write(tmp_path, letters), tokenizer=tokenizer))
    assert longest <= 1100
    assert text_of(corpus) == letters


def test_dtype_of_ids_fits_the_vocabulary(tmp_path: Path, ask: Ask) -> None:
    """More than 65,536 characters need four bytes per id."""
    wide = "".join(map(chr, range(0x10000, 0x20001)))
    corpus = open_corpus(ask(_write(tmp_path, wide), vocab_size=1 << 17))
    assert tokenizer_of(corpus).size == 65537
    assert ids_of(corpus)[-1] == 65536
    assert ids_of(corpus).dtype == np.uint32
    narrow = open_corpus(ask(_write(tmp_path, wide[:-1]), vocab_size=1 << 17))
    assert ids_of(narrow).dtype == np.uint16
    assert ids_of(narrow)[-1] == 65535


def test_token_file_depends_on_content_and_tokenizer(tmp_path: Path, ask: Ask) -> None:
    lines: list[str] = []
    path = _write(tmp_path, "the same text, " * 40)
    first = open_corpus(ask(path, notify=lines.append))
    assert len(lines) == 1
    assert "tokenising" in lines[0]
    other = tmp_path / "elsewhere.txt"
    path.rename(other)
    again = open_corpus(ask(other, notify=lines.append))
    assert len(lines) == 1, "moved, not changed"
    assert again.fingerprint == first.fingerprint
    os.utime(other)
    open_corpus(ask(other, seq_len=16, notify=lines.append))
    assert len(lines) == 1, "samples of another length are other cuts of the same tokens"
    open_corpus(ask(other, tokenizer="gpt2", notify=lines.append))
    assert len(lines) == 2
    other.write_text("The same text, " * 40)
    changed = open_corpus(ask(other, notify=lines.append))
    assert len(lines) == 3
    assert changed.fingerprint != first.fingerprint
    assert text_of(changed).startswith("The")


def test_fingerprint_distinguishes_samples(tmp_path: Path, ask: Ask) -> None:
    path = _write(tmp_path, "0123456789" * 100)
    prints = [
        open_corpus(ask(path, **changes)).fingerprint
        for changes in ({}, {"seq_len": 9}, {"validation": 0.2}, {"tokenizer": "gpt2"})
    ]
    assert len(set(prints)) == 4
    assert open_corpus(ask(path, seed=8)).fingerprint == prints[0]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.999])
def test_truncate_reads_the_first_share_of_the_characters(
    tmp_path: Path, ask: Ask, share: float
) -> None:
    text = "One é, 東京 and more. " * 60
    (tmp_path / "a.txt").write_text(text)
    first = text[: int(len(text) * share)]
    (tmp_path / "first.txt").write_text(first)
    corpus = open_corpus(ask(tmp_path / "a.txt", truncate=share, seq_len=2))
    whole = open_corpus(ask(tmp_path / "first.txt", seq_len=2))
    assert text_of(corpus) == first
    # The vocabulary is that of the truncated text
    assert tokenizer_of(corpus).state() == tokenizer_of(whole).state()
    fingerprints = {
        open_corpus(ask(tmp_path / "a.txt", truncate=n, seq_len=2)).fingerprint
        for n in (share, 0.4, 1.0)
    }
    assert len(fingerprints) == 3


def test_truncate_counts_the_characters_of_all_files(tmp_path: Path, ask: Ask) -> None:
    for name, text in (("a.txt", "abcdefghij" * 4), ("b.txt", "0123456789" * 4)):
        (tmp_path / name).write_text(text)
    paths = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))

    def read(share: float) -> str:
        return text_of(open_corpus(ask(paths, truncate=share, seq_len=2)))

    assert read(0.5) == "abcdefghij" * 4
    assert read(0.7) == "abcdefghij" * 4 + "\x03" + "0123456789012345"
