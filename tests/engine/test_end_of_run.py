"""The last output of a run, which cannot make the run fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine import end_of_run
from engine.checkpoint.directory import CheckpointDirectory
from engine.config.sections.data import DataSettings
from engine.data import tokenizer
from engine.data.tokenizers.char import Char
from engine.inout.tensor_writers import write_safetensors
from engine.runs.folder import RunFolder
from tests.engine.inout.support import SIZES, drawn, trained

WORDS = Char("".join(sorted({*"The quick brown fox"})))


def printed(tmp_path: Path, factor: float = 1.0) -> list[str]:
    """Return the output for a run whose weights are random, multiplied by ``factor``."""
    folder, model = RunFolder(tmp_path), trained(tokenizer=tokenizer.dump(WORDS))
    numbers = {name: tensor * factor for name, tensor in drawn(SIZES).items()}
    write_safetensors(
        folder.weights, numbers.items(), model.shapes, dtype=model.dtype, metadata=model.metadata
    )
    CheckpointDirectory(folder.checkpoints).folder(30).mkdir(parents=True)
    lines: list[str] = []
    end_of_run.print_end_of_run(
        folder, torch.device("cpu"), lines.append, command="./run.sh", finished=True, steps=30
    )
    assert lines[-6:] == ["", *closing(folder)]
    return lines[:-6]


def closing(folder: RunFolder) -> list[str]:
    run = folder.path
    return [
        f"weights     {run}/model.safetensors",
        f"log         {run}/log.jsonl",
        f"train more  ./run.sh train --resume {run} MAX_STEPS=60",
        f"evaluate    ./run.sh evaluate {run}",
        f"export      ./run.sh export {run} --to hf",
    ]


def test_a_sample_of_text_is_printed(tmp_path: Path) -> None:
    title, sample = printed(tmp_path)
    assert "A sample" in title
    assert sample.startswith("The ")


def test_a_large_model_is_not_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_of_run, "SAMPLE_BYTES", 1000)
    assert printed(tmp_path) == []


def test_a_model_that_overflows_is_not_sampled(tmp_path: Path) -> None:
    assert printed(tmp_path, torch.inf) == []


def test_a_stopped_run_prints_the_command_that_continues_it(tmp_path: Path) -> None:
    folder, lines = RunFolder(tmp_path / "my run"), list[str]()
    end_of_run.print_end_of_run(
        folder,
        torch.device("cpu"),
        lines.append,
        command="cuboid",
        finished=False,
        steps=30,
        evaluation=end_of_run.evaluate_options(DataSettings(type="synthetic", validation=0.0)),
        validation="loss 2.3457 after step 300, over the first 128 of 363 samples",
    )
    assert lines[1] == "validation  loss 2.3457 after step 300, over the first 128 of 363 samples"
    assert lines[4:6] == [
        f"continue    cuboid train --resume '{folder.path}'",
        f"evaluate    cuboid evaluate '{folder.path}' --split train --samples 100",
    ]
