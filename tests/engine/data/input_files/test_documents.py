"""Documents of several files, folders and glob patterns."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from engine.data.source import open_corpus
from engine.errors import UserError
from tests.engine.data.support import Ask, text_of

TEXTS = {
    "a.txt": "the first text",
    "b/c.txt": "the second",
    "b/d": "the third text",
    "e.md": "last",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in TEXTS.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "texts" / "empty").touch()
    (tmp_path / "texts" / ".hidden").write_text("hidden")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("texts", ["a.txt", "b/c.txt", "b/d", "e.md"]),
        ("texts/*.txt", ["a.txt"]),
        ("texts/**/*.txt", ["a.txt", "b/c.txt"]),
        (("texts/e.md", "texts/a.txt"), ["e.md", "a.txt"]),
        (("texts/b", "texts/*.txt", "texts/b/c.txt"), ["b/c.txt", "b/d", "a.txt"]),
        (("texts/b/[cd]*",), ["b/c.txt", "b/d"]),
    ],
)
def test_files_are_read_once_and_in_order(
    folder: Path, ask: Ask, path: str | tuple[str, ...], names: list[str]
) -> None:
    corpus = open_corpus("auto", ask(seq_len=2, validation=0.3, path=path))
    assert text_of(corpus) == "\x03".join(TEXTS[name] for name in names)
    if len(names) > 1:
        assert f"({len(names)} files)" in corpus.description


def test_single_file_is_the_same_data_by_any_path(folder: Path, ask: Ask) -> None:
    """A run resumes from its checkpoint if data.path names the file in another way."""
    paths = ["texts/a.txt", ("texts/a.txt",), "texts/*.txt", str(folder / "texts" / "a.txt")]
    prints = {open_corpus("auto", ask(p, seq_len=2, validation=0.3)).fingerprint for p in paths}
    assert len(prints) == 1
    assert open_corpus("text", ask("texts/a.txt", seq_len=2, validation=0.3)).fingerprint in prints


def test_any_change_of_any_file_changes_the_fingerprint(folder: Path, ask: Ask) -> None:
    def now() -> str:
        return open_corpus("auto", ask("texts", seq_len=2)).fingerprint

    prints = [now(), now()]
    assert prints[0] == prints[1]
    (folder / "texts/e.md").write_text("lost")
    prints.append(now())
    (folder / "texts/b/d").rename(folder / "texts/b/b")  # another order
    prints.append(now())
    (folder / "texts/f").write_text("more")
    prints.append(now())
    assert len({*prints[1:]}) == 4


def test_files_of_mixed_formats_are_read(folder: Path, ask: Ask) -> None:
    (folder / "texts/b/c.txt").write_text('{"text": "one"}\n{"text": "two"}\n')
    (folder / "texts/b/d").write_bytes(gzip.compress(b'["three", "four"]'))
    found = text_of(open_corpus("auto", ask("texts", seq_len=2)))
    assert found.split("\x03") == ["the first text", "one", "two", "three", "four", "last"]


def test_empty_file_is_no_document(folder: Path, ask: Ask) -> None:
    (folder / "texts/b/d").write_text("[ \n]")
    corpus = open_corpus("auto", ask("texts", seq_len=2, validation=0.3))
    assert "\x03\x03" not in text_of(corpus)


def test_existing_file_named_like_a_pattern_is_read(folder: Path, ask: Ask) -> None:
    (folder / "texts/*.txt").write_text("a star" * 9)
    assert text_of(open_corpus("auto", ask("texts/*.txt", seq_len=2))) == "a star" * 9


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/*.txt", "data.path='nowhere/*.txt' does not exist in "),
        (("texts", "nowhere"), "data.path='nowhere' does not exist in "),
        ("texts/empty", "data.path='texts/empty' is empty"),
        ("texts/empt*", "data.path='texts/empt*': texts/empty is empty"),
        ("none", "data.path='none': no file is there, or all files are empty"),
        ("bad", "data.path='bad': bad/x.png is a PNG picture, not text"),
        ("broken", "data.path='broken': broken/x is a broken link; a file is needed"),
    ],
)
def test_unreadable_path_is_named(
    folder: Path, ask: Ask, path: str | tuple[str, ...], message: str
) -> None:
    for name in ("none", "bad", "broken"):
        Path(name).mkdir()
    Path("none/.hidden").write_text("hidden")
    Path("bad/x.png").write_bytes(b"\x89PNG\r\n")
    Path("broken/x").symlink_to("nowhere")
    with pytest.raises(UserError) as refusal:
        open_corpus("auto", ask(path=path))
    assert message in str(refusal.value)
