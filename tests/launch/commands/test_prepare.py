"""cuboid prepare on the command line, and a run that trains on its shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from launch import cli
from tests.support.runs import open_run
from tests.support.worlds import run_world

BOOKS = 12
TEXTS = [f"Book {n}. " + "The cat sat on mat number " * (n + 2) for n in range(BOOKS)]
CONFIG = """
# A compute class of Languini with its sizes made small
BATCH_SIZE = 4
SEQ_LEN = 16
MAX_STEPS = 3
gradient_accumulation = 2
model = dict(
    n_layer=2, n_head=4, head_dim=8, n_embd=16, n_inner=64, vocab_size=257, tie_embeddings=False
)
data = dict(type="tokens", path="shards", tokenizer="bytes", validation=0.1)
optimizer = dict(type="adam", lr=6e-3, betas=(0.9, 0.95))
log = dict(tensorboard=False)
"""


def losses(rank: int, size: int, config: Path, overrides: tuple[str, ...]) -> list[float]:
    run = open_run(rank, size, config, overrides, steps=3)
    return [*(run.step(step).loss for step in range(1, 4)), run.validate().loss]


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "books" / f"{number:02}.epub.txt").write_text(text)
    return tmp_path


def test_books_are_prepared_and_trained_on_in_any_layout(
    books: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "books", "--tokenizer", "bytes", "--output", "shards", "--workers", "1"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    size = sum(map(len, TEXTS))
    assert f"12 files, {size:,} bytes of text: {size + 11:,} tokens in 1 shard" in printed.out
    assert printed.out.endswith("data = dict(type='tokens', path='shards', tokenizer='bytes')\n")
    assert f"encoding: {size:,} of {size:,} bytes" in printed.err
    ids = np.load("shards/00000.npy")
    assert bytes(ids[ids != 256].astype(np.uint8)) == "".join(TEXTS).encode()
    config = books / "small.py"
    config.write_text(CONFIG.replace('"shards"', repr(str(books / "shards"))))
    alone = losses(0, 1, config, ())
    for overrides in (("TENSOR_PARALLEL=2", "MODE=1d"), ("BATCH_SIZE=2",)):
        for found in run_world(2, losses, config, overrides):
            np.testing.assert_allclose(found, alone, rtol=2e-5)
    assert alone[2] < alone[0]


def test_invalid_arguments_of_prepare_are_one_line(
    books: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def message(*words: str) -> str:
        assert cli.main(["prepare", "--output", "out", *words]) == 2
        return capsys.readouterr().err

    assert "missing does not exist" in message("missing", "--tokenizer", "bytes")
    assert "--tokenizer" in message("books")
    assert message("books", "--tokenizer", "sentencepiece").startswith(
        "data.tokenizer='sentencepiece' needs a model file"
    )
    (books / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    assert "a PNG picture" in message("picture.png", "--tokenizer", "bytes")
