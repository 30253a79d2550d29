"""cuboid prepare on the command line, and a run that trains on its shards."""

from __future__ import annotations

import math
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


LANGUINI = Path(__file__).parents[3] / "gpt_configs" / "languini_6h.py"
SMALL = (
    *("GLOBAL_BATCH_SIZE=8", "SEQ_LEN=16", "MAX_STEPS=3", "precision=float32"),
    *("model.n_layer=2", "model.n_head=4", "model.head_dim=8", "model.n_embd=16"),
    *("model.n_inner=64", "model.vocab_size=257", "data.tokenizer=bytes"),
    *(
        "optimizer.lr=6e-3",
        "lr_scheduler.warmup=1",
        "eval.lanes=2",
        "eval.tokens=None",
        "eval.samples=all",
    ),
)
"""Overrides of a compute class that make it small."""


def losses(rank: int, size: int, config: Path, overrides: tuple[str, ...]) -> list[float]:
    """Return the loss of a validation, of three steps and of another validation."""
    run = open_run(rank, size, config, overrides, steps=3)
    trained = [run.validate().loss, *(run.step(step).loss for step in range(1, 4))]
    return [*trained, run.validate().loss]


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
    alone = losses(0, 1, written(books), ())
    for found in run_world(2, losses, books / "small.py", ("TENSOR_PARALLEL=2", "MODE=1d")):
        np.testing.assert_allclose(found, alone, rtol=2e-5)
    assert alone[-1] < alone[0]


def written(folder: Path) -> Path:
    """Write the config, with absolute paths, and return its path."""
    path = folder / "small.py"
    path.write_text(CONFIG.replace('"shards"', repr(str(folder / "shards"))))
    return path


def test_compute_class_trains_on_prepared_books_in_any_layout(books: Path) -> None:
    options = ["--tokenizer", "bytes", "--output", "data", "--layout", "languini"]
    assert cli.main(["prepare", "books", *options, "--workers", "1"]) == 0
    (books / "held").mkdir()
    for name, text in (("a.txt", "A short test of books. " * 3), ("b.txt", "Another.")):
        (books / "held" / name).write_text(text)
    assert cli.main(["prepare", "held", *options, "--split", "test", "--workers", "1"]) == 0
    small = (*SMALL, f"data.path={books / 'data/bytes'}")
    alone = losses(0, 1, LANGUINI, (*small, "BATCH_SIZE=4"))
    # Only the targets of the texts count, not the padding behind the shorter of eval.lanes=2
    assert alone[0] == pytest.approx(math.log(257), abs=0.05)
    run = open_run(0, 1, LANGUINI, (*small, "BATCH_SIZE=8"))
    assert run.batches.validation.targets == len("A short test of books. " * 3 + "Another.")
    assert run.batches.targets(1) == 8 * 16
    for layout in (("TENSOR_PARALLEL=2", "MODE=1d", "BATCH_SIZE=4"), ("BATCH_SIZE=2",)):
        for found in run_world(2, losses, LANGUINI, (*small, *layout)):
            np.testing.assert_allclose(found, alone, rtol=2e-5)
    assert alone[-1] < alone[0]


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
