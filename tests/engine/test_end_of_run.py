"""The last output of a run, which cannot make the run fail."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from engine import end_of_run
from engine.checkpoint.directory import CheckpointDirectory
from engine.data import tokenizer
from engine.data.tokenizers.char import Char
from engine.inout.tensor_writers import write_safetensors
from engine.runs.folder import RunFolder
from engine.runs.invocation import cuboid
from engine.runs.metrics import StepMetrics
from engine.runs.reporter import Reporter
from engine.runs.terminal import StepTimer, Terminal
from tests.engine.inout.support import SIZES, drawn, trained
from tests.support.jobs import TINY
from tests.support.runs import open_run

ROW = StepMetrics(
    step=1,
    loss=3.0,
    lr=1e-3,
    grad_norm=0.5,
    tokens=512,
    tokens_per_second=1e6,
    seconds=0.5,
    memory_by_rank=(2**30,),
)
WORDS = Char("".join(sorted({*"The quick brown fox"})))


def printed_sample(tmp_path: Path, factor: float = 1.0) -> str:
    """Return the text before the last lines of a run with random weights x ``factor``."""
    folder, model = RunFolder(tmp_path), trained(tokenizer=tokenizer.dump(WORDS))
    numbers = {name: tensor * factor for name, tensor in drawn(SIZES).items()}
    write_safetensors(
        folder.weights, numbers.items(), model.shapes, dtype=model.dtype, metadata=model.metadata
    )
    CheckpointDirectory(folder.checkpoints).folder(30).mkdir(parents=True)
    lines = end_lines(tmp_path, folder, finished=True)
    assert lines[-6:] == ["", *closing(folder)]
    return "\n".join(lines[:-6])


def end_lines(
    tmp_path: Path,
    folder: RunFolder,
    *overrides: str,
    finished: bool,
    val_loss: float | None = None,
    ranks: int = 1,
) -> list[str]:
    """Return the last lines of a run of 30 steps, which reported one validation. It has ``ranks``
    ranks, one on this machine."""
    (tmp_path / "tiny.py").write_text(TINY)
    trainer = open_run(0, 1, tmp_path / "tiny.py", overrides, steps=30)
    trainer.world = replace(trainer.world, size=ranks)
    console = Console(file=io.StringIO(), width=500)
    timer = StepTimer(total_steps=30)
    reporter = Reporter(folder, Terminal(console, timer, every=1000, steps_done=0, advise=None))
    reporter.validation = replace(ROW, step=300, val_loss=val_loss)
    end_of_run.print_end_of_run(trainer, folder, reporter, finished=finished)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def closing(folder: RunFolder) -> list[str]:
    run, command = folder.path, cuboid()
    return [
        f"weights     {run}/model.safetensors",
        f"log         {run}/log.jsonl",
        f"train more  {command} train --resume {run} MAX_STEPS=60",
        f"evaluate    {command} evaluate {run}",
        f"export      {command} export {run} --to hf",
    ]


def test_a_sample_of_text_is_printed(tmp_path: Path) -> None:
    assert printed_sample(tmp_path).startswith("\nA sample of its text:\n\nThe ")


def test_a_large_model_is_not_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_of_run, "SAMPLE_BYTES", 1000)
    assert printed_sample(tmp_path) == ""


def test_a_model_that_overflows_is_not_sampled(tmp_path: Path) -> None:
    assert printed_sample(tmp_path, torch.inf) == ""


def test_a_stopped_run_prints_the_command_to_continue(tmp_path: Path) -> None:
    folder, overrides = RunFolder(tmp_path / "my run"), ("data.validation=0.0",)
    lines = end_lines(tmp_path, folder, *overrides, finished=False, val_loss=2.34567)
    assert lines[1].startswith("validation  loss 2.3457 after step 300, over ")
    assert lines[4:6] == [
        f"continue    {cuboid()} train --resume '{folder.path}'",
        f"evaluate    {cuboid()} evaluate '{folder.path}' --split train --samples 100",
    ]


def test_a_stopped_run_on_several_machines_prints_the_option_to_continue(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path / "run")
    lines = end_lines(tmp_path, folder, finished=False, ranks=2)
    assert f"continue    start it again on all machines with --resume {folder.path}" in lines
