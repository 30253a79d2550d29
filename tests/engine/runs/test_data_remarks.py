"""Warnings about settings that do not suit the data."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from engine.data.batches.loader import load_batches
from engine.plan import Plan, make_plan
from engine.runs.data_remarks import data_remarks

CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 8
MAX_STEPS = 3
model = dict(n_layer=1, n_head=1, n_embd=8)
data = dict(path='text', tokenizer='char')
"""
TEXT = "abcdefghijklmnopqrstuvwxyz" * 10  # 260 tokens: 234 to train on, 29 samples of 8


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "gpt.py").write_text(CONFIG)
    return tmp_path


def plan(*overrides: str, gpus: int | None = None) -> Plan:
    return make_plan("gpt.py", gpus=gpus, overrides=overrides, environ={})


def remarks_on(*overrides: str, gpus: int | None = None, begins: bool = True) -> list[str]:
    asked = plan("model.vocab_size=26", *overrides, gpus=gpus)
    batches = load_batches(asked.settings, data_size=asked.layout.data, cache=Path("cache"))
    return list(data_remarks(asked, batches, begins=begins))


@pytest.mark.parametrize("layout", [(), ("gradient_accumulation=7",), ("BATCH_SIZE=29",)])
def test_step_within_the_data_gives_no_warning(layout: tuple[str, ...]) -> None:
    assert remarks_on(*layout) == []
    assert plan(*layout).warnings == ()


@pytest.mark.parametrize(
    ("overrides", "gpus", "taken", "times"),
    [
        (("BATCH_SIZE=30",), None, 30, 2),
        (("gradient_accumulation=8",), None, 32, 2),
        (("BATCH_SIZE=812",), None, 812, 28),
        ((), 8, 32, 2),
    ],
)
def test_step_larger_than_the_data_gives_a_warning(
    folder: Path, overrides: tuple[str, ...], gpus: int | None, taken: int, times: int
) -> None:
    (folder / "text").write_bytes(gzip.compress(TEXT.encode()))  # its size is known once it is read
    (line,) = remarks_on(*overrides, gpus=gpus)
    assert "warning: " in line
    assert f"a step takes {taken} samples and the data has 29 of 8 tokens to train on" in line
    assert f"reads each up to {times} times" in line


def test_plan_warns_if_the_file_size_proves_a_step_too_large(folder: Path) -> None:
    (warning,) = plan("BATCH_SIZE=30").warnings
    assert (
        "BATCH_SIZE=30: a step needs 30 samples of 8 tokens, but data.path='text' has at most 29 "
        in (warning)
    )
    assert remarks_on("BATCH_SIZE=30") == []  # once is enough
    assert plan("BATCH_SIZE=30", "data.type=synthetic", "data.path=None").warnings == ()
    assert plan("BATCH_SIZE=30", "data.path=None").warnings == ()
    (folder / "text").write_text(TEXT + "a" * 8)
    assert plan("BATCH_SIZE=30").warnings == ()
    # Characters of two bytes: certain only once the text is read
    (folder / "text").write_text("".join(chr(ord(c) + 0x400) for c in TEXT))
    assert plan("BATCH_SIZE=30").warnings == ()
    assert len(remarks_on("BATCH_SIZE=30")) == 1


def test_vocabulary_far_larger_than_the_tokenizers_gives_a_warning_with_remedy() -> None:
    def line_for(*overrides: str) -> str:
        asked = plan(*overrides)
        batches = load_batches(asked.settings, data_size=1, cache=Path("cache"))
        (line,) = data_remarks(asked, batches, begins=True)
        assert list(data_remarks(asked, batches, begins=False)) == []
        return line

    tokens = 8 * (50257 - 26)
    by_default = line_for()
    assert by_default.startswith(
        "warning: gpt.py: model.vocab_size=50257, and data.tokenizer='char'"
    )
    assert f" has 26 tokens: the other ids never occur, and {tokens:,} of the " in by_default
    assert by_default.endswith("; model.vocab_size=26 leaves them out")
    assert f"{2 * tokens:,} of the" in line_for("model.tie_embeddings=False")
    assert line_for("model.vocab_size=52").startswith("note: command line: model.vocab_size=52, ")
    assert remarks_on("model.vocab_size=51") == []
