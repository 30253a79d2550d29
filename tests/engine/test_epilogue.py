"""What a run ends with, and that a run that was trained does not fail of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine import epilogue
from engine.data import tokenizer
from engine.data.tokenizers.char import Char
from engine.inout.writing import write_safetensors
from engine.run_folder import RunFolder
from tests.engine.inout.support import SIZES, drawn, trained

WORDS = Char("".join(sorted({*"The quick brown fox"})))


def told(tmp_path: Path, factor: float = 1.0) -> list[str]:
    """Of a run whose weights are random, times ``factor``."""
    folder, model = RunFolder(tmp_path), trained(tokenizer=tokenizer.dump("char", WORDS))
    numbers = {name: tensor * factor for name, tensor in drawn(SIZES).items()}
    write_safetensors(
        folder.weights, numbers.items(), model.shapes, dtype=model.dtype, metadata=model.metadata
    )
    lines: list[str] = []
    epilogue.epilogue(folder, torch.device("cpu"), lines.append, sample=True)
    assert lines[-1].startswith("log ")
    return lines


def test_a_sample_is_written(tmp_path: Path) -> None:
    title, sample, *rest = told(tmp_path)
    assert "A sample" in title
    assert sample.startswith("The ")
    assert len(rest) == 2


def test_a_large_model_writes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epilogue, "SAMPLE_BYTES", 1000)
    assert len(told(tmp_path)) == 2


def test_nor_does_one_that_overflows(tmp_path: Path) -> None:
    assert len(told(tmp_path, torch.inf)) == 2
