"""A config of Languini's compute classes end to end, on books in Languini's layout: one process
with accumulation, data parallel and 1d give the same run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.runs.start_candidates import StartOptions
from tests.support.books import write_books
from tests.support.jobs import Job, run, run_all, without_sample
from tests.support.sentencepiece_models import ENGLISH, LANGUINI, trained_model

CONFIG = Path(__file__).parents[1] / "gpt_configs" / "languini_6h.py"
STEPS, WARMUP = 4, 2
SMALL = (
    *("GLOBAL_BATCH_SIZE=4", "BATCH_SIZE=2", "SEQ_LEN=16", f"MAX_STEPS={STEPS}"),
    *("model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.head_dim=24"),
    *("model.n_inner=64", "model.vocab_size=320", "precision=float32", "eval.tokens=64"),
    *(f"lr_scheduler.warmup={WARMUP}", "log.tensorboard=False", "checkpoint.every=None"),
    *("data.path=vocabulary", "data.tokenizer_path=books.model"),
)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / name / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_compute_class_trains_the_same_model_in_other_layouts(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = trained_model(**LANGUINI)
    (tmp_path / "books.model").write_bytes(model)
    encode = sentencepiece.SentencePieceProcessor(model_proto=model).encode
    books = [encode(text * (1 + number)) for number, text in enumerate(ENGLISH)]
    write_books(tmp_path, {"train": books, "test_iid": books[:4]})
    shutil.copy(CONFIG, tmp_path / "tiny.py")

    def job(name: str, *overrides: str) -> Job:
        options = StartOptions(output=Path(name))
        overrides = (*SMALL, *overrides)
        return Job(folder=tmp_path, overrides=overrides, options=options, planted=without_sample)

    (alone,) = run(job("alone"))
    assert alone.error == "", alone.err
    for of_job in run_all([job("data"), job("1d", "TENSOR_PARALLEL=2", "MODE=1d")], ranks=2):
        assert [ended.error for ended in of_job] == ["", ""], [ended.err for ended in of_job]

    wanted = rows(tmp_path, "alone")
    for step, row in enumerate(wanted, start=1):
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        assert row["lr"] == pytest.approx(6e-4 * min(step, WARMUP) / WARMUP * cosine, rel=1e-12)
        assert row["tokens"] == step * 4 * 16
    assert "val_loss" in wanted[-1]
    for name in ("data", "1d"):
        found = rows(tmp_path, name)
        assert len(found) == STEPS
        for row, expected in zip(found, wanted, strict=True):
            assert row.keys() == expected.keys()
            for key in {"loss", "grad_norm", "val_loss"} & row.keys():
                assert row[key] == pytest.approx(expected[key], rel=1e-5), (name, key)
            assert (row["lr"], row["tokens"]) == (expected["lr"], expected["tokens"])
