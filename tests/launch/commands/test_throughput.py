"""cuboid throughput: the sweep over batch sizes, the measured steps, the rows of the CSV file."""

from __future__ import annotations

import csv
import json
import os
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import torch

import throughput_gpt
from engine.training.trainer import Trainer
from launch import machine, torchrun
from launch.cli import main
from launch.commands.throughput import sweep
from launch.throughput_rows import COLUMNS
from tests.support.programs import by_hand
from tests.support.worlds import run_world

CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 8
NUM_EPOCHS = 3
model = dict(n_layer=2, n_head=4, n_embd=16, head_dim=8, vocab_size=33, tie_embeddings=True)
data = dict(type="text", path="missing.txt", tokenizer="char")
lr_scheduler = dict(by="epoch", type="cosine")
"""


@pytest.mark.parametrize(
    ("unit", "limit", "memory", "largest"),
    [
        (1, None, 1, 1),
        (1, None, 13, 13),
        (1, None, 100, 96),  # to an eighth
        (4, None, 30, 28),
        (1, 12, 1000, 12),
        (3, 11, 1000, 9),
        (1, None, 0, None),
        (8, 4, 1000, None),
    ],
)
def test_sweep_finds_the_largest_size_that_fits(unit, limit, memory, largest):
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return bool(size <= memory)

    sweep(fits, unit=unit, limit=limit)
    assert max((size for size in tried if size <= memory), default=None) == largest
    assert len(set(tried)) == len(tried)
    assert all(size % unit == 0 for size in tried)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "count_gpus", lambda: 0)
    return tmp_path


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [(1, ["data.type=images", "eval.split=test"]), (2, ["TENSOR_PARALLEL=2", "MODE=1d"])],
)
def test_ranks_measure_the_requested_steps_without_data_or_run_folder(folder, ranks, layout):
    """The config's data is missing, with the split to validate on, and its schedule is by epoch."""
    words = ["--config=tiny.py", "--steps=3", "--warmup=1", *layout]
    ended = by_hand(ranks, words, folder, program="throughput_gpt")
    assert [rank.code for rank in ended] == [0] * ranks, [rank.err for rank in ended]
    result = json.loads(ended[0].out.splitlines()[-1])
    assert len(result["step_seconds"]) == 3
    assert 0 < result["model_bytes"] <= result["peak_bytes"]
    assert not (folder / "runs").exists()


def stand_in(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> list[list[str]]:
    """Replace the start of ranks: ``outcome`` is given the batch size and returns exit code and
    content of the result file. Return the list of the starts' arguments."""
    starts: list[list[str]] = []

    def run(ranks: int, arguments: list[str], *, program: str) -> int:
        assert (ranks, program) == (1, "throughput_gpt")
        starts.append(arguments)
        options = dict(word.split("=", 1) for word in arguments)
        code, text = outcome(int(options["BATCH_SIZE"]))
        if text is not None:
            Path(options["--result"]).write_text(text)
        return int(code)

    monkeypatch.setattr(torchrun, "run", run)
    return starts


def measured(size: int) -> str:
    seconds = [0.1 * size, 0.2 * size, 0.3 * size]
    return json.dumps(
        {"device": "a CPU", "step_seconds": seconds, "model_bytes": 1000, "peak_bytes": 2000 * size}
    )


def test_rows_have_one_schema_and_the_figures_of_the_steps(folder, monkeypatch, capsys):
    """A rank is out of memory from 3 samples on."""
    starts = stand_in(monkeypatch, lambda size: (0, measured(size)) if size < 3 else (1, ""))
    for _ in range(2):
        assert main(["throughput", "tiny.py", "--steps=3", "GLOBAL_BATCH_SIZE=8"]) == 0
    out = capsys.readouterr().out
    assert "out of memory" in out
    assert "best: BATCH_SIZE=1 with 40 tokens/s" in out
    assert all("--steps=3" in arguments for arguments in starts)
    with Path("throughput.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["batch_size"] for row in rows] == 2 * ["1", "2", "4", "3"]
    assert all(list(row) == COLUMNS for row in rows)
    one, two, four, _ = rows[:4]
    assert one["tokens_per_step"] == "8"
    assert float(two["step_ms_mean"]) == pytest.approx(400)
    assert float(two["step_ms_std"]) == pytest.approx(1000 * statistics.stdev([0.2, 0.4, 0.6]))
    assert float(two["tokens_per_second"]) == pytest.approx(16 / 0.4)
    assert (four["out_of_memory"], four["tokens_per_second"]) == ("True", "")
    # Embedding 33 x 16, positions 8 x 16; a block: attention 16 x 96 + 96 + 32 x 16 + 16, MLP
    # 16 x 64 + 64 + 64 x 16 + 16, two norms of 32; the last norm
    block = 16 * 96 + 96 + 32 * 16 + 16 + 2 * 16 * 64 + 64 + 16 + 64
    assert int(one["non_embedding_parameters"]) == 8 * 16 + 2 * block + 32
    assert int(one["parameters"]) == int(one["non_embedding_parameters"]) + 33 * 16


def test_ranks_measure_the_vocabulary_of_the_data(folder, monkeypatch):
    Path("text.txt").write_text("abcab" * 40)
    starts = stand_in(monkeypatch, lambda size: (0, measured(size)))
    words = ["model.vocab_size=data", "data.path=text.txt", "--max-batch=2"]
    assert main(["throughput", "tiny.py", *words]) == 0
    stated = [[word for word in start if word.startswith("model.vocab_size=")] for start in starts]
    assert [words[-1] for words in stated] == ["model.vocab_size=3"] * 2


def test_sizes_beyond_the_available_memory_are_not_started_on_a_cpu(folder, monkeypatch, capsys):
    starts = stand_in(monkeypatch, lambda size: (0, measured(size)))
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 22, total=1 << 30)
    )
    assert main(["throughput", "tiny.py"]) == 0
    assert "not measured: needs" in capsys.readouterr().out
    assert 1 < len(starts) < 20


@pytest.mark.parametrize(
    ("outcome", "words", "code", "message"),
    [
        ((1, ""), [], 1, "the smallest batch does not fit into memory"),
        ((1, None), [], 1, "see the message of the rank above"),
        ((2, None), [], 2, "see the message of the rank above"),
        ((0, "{}"), ["--csv=other.csv"], 2, "other.csv has other columns"),
        ((0, "{}"), ["model.vocab_size=data"], 2, "pass model.vocab_size=N"),
    ],
)
def test_failures_have_a_message_and_an_exit_code(
    folder, monkeypatch, capsys, outcome, words, code, message
):
    Path("other.csv").write_text("batch_size,config_name\n")
    starts = stand_in(monkeypatch, lambda size: outcome)
    assert main(["throughput", "tiny.py", *words]) == code
    assert message in capsys.readouterr().err
    assert len(starts) == (not words)


def full_rank(rank: int, size: int, folder: Path) -> int:
    os.chdir(folder)
    with patch.object(Trainer, "step", side_effect=torch.OutOfMemoryError("no memory")):
        return throughput_gpt.main(["--config=tiny.py", "--result=result"], {})


def test_rank_that_is_out_of_memory_leaves_an_empty_result(folder):
    assert run_world(1, full_rank, folder, open_group=False) == [1]
    assert (folder / "result").read_text() == ""
