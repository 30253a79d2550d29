"""The reports of a run in its folder and on the terminal, for each kind of end."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engine.config.schema import Settings
from engine.config.sections.model import ModelSettings
from engine.estimate.flops import PEAK_FLOPS, flops_per_token
from engine.formatting import format_duration
from engine.layout import Layout
from engine.plan import ConfigFile, Plan
from engine.runs.expected_time import HOUR
from engine.runs.folder import RunFolder, claim_folder
from engine.runs.metrics import StepMetrics
from engine.runs.reporter import Reporter, RunInfo, open_rank_0_reporter
from models.parallel.registry import modes

ROW = StepMetrics(
    step=1,
    loss=3.0,
    lr=1e-3,
    grad_norm=0.5,
    tokens=512,
    tokens_per_second=1e6,
    seconds=0.5,
    memory_by_rank=(2**30,) * 8,
)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Mode 2d on 4 ranks, data parallel 2."""
    source = tmp_path / "demo.py"
    source.write_text("BATCH_SIZE = 4\n")
    sizes: dict[str, Any] = {
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 32,
        "vocab_size": 64,
        "block_size": 64,
    }
    settings = Settings(
        name="demo",
        source=str(source),
        batch_size=4,
        seq_len=64,
        max_steps=20,
        tensor_parallel=4,
        mode="2d",
        precision="bf16",
        model=ModelSettings(**sizes, head_dim=8, n_inner=128),
    )
    return Plan(
        settings=settings,
        config=ConfigFile(path=source, text=source.read_text()),
        layout=Layout(mode=modes()["2d"], tensor=4, data=2),
        warnings=("demo.py:1: a warning [of sorts]",),
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return claim_folder("demo", "a", output=tmp_path / "run")


def report(plan: Plan, folder: RunFolder, device: str = "cpu") -> tuple[Reporter, io.StringIO]:
    file = io.StringIO()
    facts = RunInfo(device=device, parameters=26_000, total_steps=20, more={"data": "poems"})
    return open_rank_0_reporter(plan, facts, folder, Console(file=file, width=200)), file


def test_a_finished_run_has_status_log_curves_and_table(plan, folder):
    reporter, file = report(plan, folder)
    with reporter:
        assert folder.read_status()["state"] == "running"
        reporter.step(ROW)
        reporter.step(replace(ROW, step=2, val_loss=2.5))
        reporter.print_line("a word")
    status = folder.read_status()
    assert (status["state"], status["step"]) == ("finished", 2)
    rows = [json.loads(line) for line in folder.log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert folder.has_curves
    text = file.getvalue()
    assert "warning: demo.py:1: a warning [of sorts]" in text
    assert "tensor 4 (2d: r=2 c=2) x pipeline 1 x data 2 = 8 processes" in text
    assert "= 8 samples of 64 tokens per step" in text
    assert re.search(r"parameters +26 K", text)
    assert "poems" in text
    assert str(folder.path) in text
    assert [line.split() for line in text.splitlines()[-3:-1]] == [
        *(
            [
                "step",
                "2/20",
                "3.0000",
                "1.0e-03",
                "0.500",
                "1M",
                "500",
                "1",
                "GiB",
                line.split()[-1],
            ]
            for line in text.splitlines()[-3:-2]
        ),
        "step 2/20 val loss 2.5000 perplexity 12.182".split(),
    ]
    assert text.splitlines()[-1] == "a word"


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (RuntimeError("loss is NaN\nmore"), "failed", "RuntimeError: loss is NaN"),
        (KeyboardInterrupt("SIGHUP"), "interrupted", "stopped by SIGHUP"),
    ],
)
def test_an_error_determines_the_status(plan, folder, error, state, message):
    reporter, _ = report(plan, folder)

    def fail() -> None:
        with reporter:
            reporter.step(ROW)
            raise error

    with pytest.raises(type(error)):
        fail()
    status = folder.read_status()
    assert (status["state"], status["step"], status["message"]) == (state, 1, message)


def test_the_first_end_of_a_run_is_not_overwritten(plan, folder):
    reporter, file = report(plan, folder)
    with reporter:
        reporter.step(ROW)
        reporter.finish("interrupted", "asked to")
        reporter.print_line("good bye")
    assert folder.read_status()["message"] == "asked to"
    assert "good bye" in file.getvalue()


def test_mfu_relates_to_all_devices(plan, folder):
    reporter, file = report(plan, folder, device="NVIDIA H200")
    with reporter:
        reporter.step(replace(ROW, tokens_per_second=1e10))
    flops = flops_per_token(plan.settings.model, 64) * 1e10
    assert flops > 1e14
    titles, values = (line.split() for line in file.getvalue().splitlines()[-2:])
    assert values[titles.index("MFU") + 2] == f"{flops / (8 * PEAK_FLOPS['H200'][0]):.1%}"


def test_mfu_is_missing_without_a_known_peak(plan, folder):
    reporter, file = report(plan, folder)
    with reporter:
        reporter.step(ROW)
    assert "MFU" not in file.getvalue()


@pytest.mark.parametrize("cores", [None, 4])
def test_the_expected_time_on_a_cpu_is_printed_before_the_first_step(plan, folder, cores):
    """A smaller run is proposed, too, if it is long."""
    file = io.StringIO()
    facts = RunInfo(device="cpu", parameters=26_000, total_steps=10_000_000, cores=cores)
    open_rank_0_reporter(plan, facts, folder, Console(file=file, width=200)).finish("finished")
    text = " ".join(file.getvalue().split())
    seconds = flops_per_token(plan.settings.model, 64) * plan.tokens_per_step / 30e9 / 4 * 1e7
    assert seconds > HOUR
    expected = f"time about {format_duration(seconds)}, a guess at 30 GFLOP/s per core on 4 cores"
    assert (expected in text) == (cores is not None)
    assert ("for a run of 10 minutes: MAX_STEPS=" in text) == (cores is not None)


def test_tensorboard_can_be_disabled(plan, folder):
    log = plan.settings.log.model_copy(update={"tensorboard": False})
    settings = plan.settings.model_copy(update={"log": log})
    reporter, _ = report(replace(plan, settings=settings), folder)
    with reporter:
        reporter.step(ROW)
    assert not folder.has_curves


def test_other_ranks_report_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Reporter() as reporter:
        reporter.step(ROW)
        reporter.print_line("not heard")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
