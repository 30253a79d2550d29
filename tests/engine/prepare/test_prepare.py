"""cuboid prepare: the shards have the tokens that the text itself has, also after a kill."""

import gzip
import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from engine.data import source
from engine.data.input_files import data_file
from engine.data.input_files.data_file import data_files
from engine.data.source import Corpus, SourceRequest
from engine.errors import UserError
from engine.prepare import prepare as module
from engine.prepare.output_formats import LanguiniFormat, OwnFormat
from engine.prepare.prepare import Prepared, TokenizerChoice, journal_path, prepare
from tests.engine.data.support import ids_of, tokenizer_of

GPT2 = TokenizerChoice(name="gpt2", path=None)
SHARD = 300  # tokens


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Return a folder of a text, compressed JSON lines and a JSON array."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("Naïve cafés, 東京 and <|endoftext|> 🙂.\n" * 60)
    lines = "".join(json.dumps({"text": f"Line {n} of many."}) + "\n" for n in range(80))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "c.json").write_text(json.dumps(["One.", "Two two.", ""]))
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 100)
    monkeypatch.setattr(data_file, "BLOCK", 64)


def run(texts: Path, output: Path, choice: TokenizerChoice = GPT2, **more: Any) -> Prepared:
    return prepare(data_files(str(texts)), OwnFormat(output, SHARD), choice, **more)


def corpus(kind: str, path: Path, cache: Path, tokenizer: str = "gpt2") -> Corpus:
    request = SourceRequest(
        path=str(path),
        tokenizer=tokenizer,
        validation=0.25,
        seq_len=8,
        vocab_size=60000,
        seed=0,
        cache=cache,
    )
    return source.open_corpus(kind, request)


def contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_shards_have_the_tokens_of_the_text(texts: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    output = tmp_path / "out"
    result = run(texts, output, processes=2, progress=lambda *pair: done.append(pair))
    prepared, plain = corpus("tokens", output, tmp_path), corpus("auto", texts, tmp_path)
    assert np.array_equal(ids_of(prepared), ids_of(plain))
    x, y = prepared.train.batch(np.array([3, 0, 40]))
    assert (x.tolist(), y.tolist()) == tuple(
        part.tolist() for part in plain.train.batch(np.array([3, 0, 40]))
    )
    assert tokenizer_of(prepared).state() == tokenizer_of(plain).state()
    assert result.tokens == len(ids_of(plain))
    assert (result.files, result.resumed) == (3, 0)
    assert result.shards == len(list(output.glob("*.npy"))) > 3
    assert done[-1][0] == result.bytes
    assert [pair[0] for pair in done] == sorted(pair[0] for pair in done)
    manifest = json.loads((output / "tokens.json").read_text())
    hashes = contents(output)
    assert [s["sha256"] for s in manifest["shards"]] == [
        hashes[s["file"]] for s in manifest["shards"]
    ]
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes) if ".npy" in name)
    assert result.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert set(hashes) == {*(s["file"] for s in manifest["shards"]), "tokens.json"} | {
        "tokenizer.json"
    }
    assert run(texts, output) == Prepared(**vars(result) | {"resumed": result.shards})


def _killed_at(call: int, texts: str, output: str, pids: str) -> None:
    """Prepare, and kill this process, a fork of the test's, at a call of its progress."""
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == call:
            children = [str(child.pid) for child in psutil.Process().children()]
            Path(pids).write_text(" ".join(children))
            os.kill(os.getpid(), signal.SIGKILL)

    run(Path(texts), Path(output), processes=2, progress=progress)


def test_a_killed_command_resumes_to_the_same_bytes(texts: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(texts, whole, processes=2)
    arguments = (14, str(texts), str(killed), str(tmp_path / "pids"))
    process = multiprocessing.get_context("fork").Process(target=_killed_at, args=arguments)
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    shards = list(killed.glob("*.npy"))
    assert shards
    assert len(shards) < len(list(whole.glob("*.npy")))
    with pytest.raises(UserError, match=r"has no tokens\.json, which `cuboid prepare` writes when"):
        corpus("tokens", killed, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in shards}
    with journal_path(OwnFormat(killed)).open("ab") as file:
        file.write(b'{"file": "a line that the kill cut o')
    result = run(texts, killed)
    assert result.resumed == len(shards)
    assert {path: path.stat().st_mtime_ns for path in shards} == times  # not written again
    assert contents(killed) == contents(whole)
    workers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert workers
    while any(_runs(pid) for pid in workers):  # they end with their parent
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_other_inputs_or_tokenizers_are_rejected(texts: Path, tmp_path: Path) -> None:
    def message(choice: TokenizerChoice = GPT2) -> str:
        with pytest.raises(UserError) as error:
            run(texts, output, choice)
        return str(error.value)

    output = tmp_path / "out"
    output_format = OwnFormat(output, SHARD)
    output.mkdir()
    (output / "tokenizer.json").write_text('{"type": "bytes"}')
    assert "is another tokenizer than --tokenizer gpt2; choose another --output" in message()
    journal = journal_path(output_format)
    before = journal.read_text()
    (texts / "a.txt").write_text("Changed.")
    assert "has unfinished work of other inputs or of another tokenizer" in message()
    assert journal.read_text() == before
    with journal.open("rb") as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is being written by another process" in message()
    journal.unlink()
    (output / "tokens.json").write_text('{"request": {}, "shards": []}')
    assert "describes tokens of other inputs or of another tokenizer" in message()


def languini(root: Path, split: str, books: Mapping[str, str], names: Sequence[str] = ()) -> Path:
    """Prepare books as a split of ``root``, and return the folder of the vocabulary."""
    inputs = root / f"books-{split}"
    inputs.mkdir(parents=True)
    for name, text in books.items():
        (inputs / name).write_text(text)
    files = data_files(str(inputs))
    output = LanguiniFormat(root / "data", "mine", split, [file.path for file in files])
    prepare(files, output, TokenizerChoice(name="char", path=None), processes=1)
    return output.folder


def test_languini_layout_has_a_shard_and_a_line_per_book(tmp_path: Path) -> None:
    books = {"Ada.epub.txt": "abcd" * 90, "Bob.epub.txt": "dcba" * 3, "c.txt": "abab"}
    folder = languini(tmp_path, "train", books)
    rows = np.load(tmp_path / "data/file_list_train.npy", allow_pickle=False)
    assert rows.tolist() == [
        ["files/Ada.epub.npy", "360"],
        ["files/Bob.epub.npy", "12"],
        ["files/c.npy", "4"],
    ]
    languini(tmp_path, "test", {"test.txt": "dd"})
    assert (tmp_path / "data/file_list_test_iid.npy").exists()
    bob = np.load(folder / "files/Bob.epub.npy")
    assert (bob.tolist(), bob.dtype) == ([4, 3, 2, 1] * 3, np.uint16)
    with pytest.raises(UserError, match=r"'e' .*is not in the vocabulary"):
        languini(tmp_path, "java", {"other.txt": "e"})
    with pytest.raises(UserError, match=r"would both become files/a\.npy"):
        LanguiniFormat(tmp_path, "mine", "train", [Path("x/a.txt"), Path("y/a.txt.gz")])
