"""The summary of an epoch: in a run of two ranks, on the terminal, and in TensorBoard."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console

from engine.runs.epochs import EpochMeter, EpochSummary
from engine.runs.folder import RunFolder, claim_folder
from engine.runs.metrics import JsonLinesLog, StepMetrics
from engine.runs.reporter import Reporter
from engine.runs.start_candidates import StartOptions
from engine.runs.terminal import StepTimer, Terminal, format_epoch
from engine.training import trainer
from engine.training.step_times import StepTimes
from engine.world.world import World
from tests.support.jobs import RUN, into_run, run_all
from tests.support.metrics import row

SAMPLES, GLOBAL_BATCH, STEPS = 10, 4, 8
EPOCHS = {epoch: math.ceil(epoch * SAMPLES / GLOBAL_BATCH) for epoch in (1, 2, 3)}
"""The last step of each epoch that ends within STEPS: 2.5, 5 and 7.5, rounded up."""
SUMMARY = EpochSummary(
    epoch=2,
    first_step=5,
    last_step=8,
    seconds=43.69,
    train_loss=2.5,
    val_loss=2.25,
    memory_bytes=2**30,
    host_memory_bytes=3 * 2**30,
)


@contextlib.contextmanager
def memory_of_rank(world: World) -> Iterator[None]:
    """Patch the memory of a rank: 100 and 300 bytes on the device, 1000 and 3000 on the host."""
    share = 2 * world.rank + 1
    with (
        patch.object(trainer, "peak_bytes", lambda device: 100 * share),
        patch.object(trainer, "peak_resident_bytes", lambda: 1000 * share),
    ):
        yield


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = RunFolder(folder / RUN).log.read_text().splitlines()
    return [json.loads(line) for line in lines]


def mean(rows: list[dict[str, Any]], name: str) -> float:
    return fmean(found[name] for found in rows if name in found)


def test_epochs_of_a_sharded_run_equal_the_means_of_its_log_also_after_a_resume(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    jobs = []
    for folder, steps, resume in [(whole, 8, "none"), (parts, 4, "none"), (parts, 8, str(RUN))]:
        options = StartOptions(output=None if resume == str(RUN) else RUN, resume=resume)
        overrides = ("TENSOR_PARALLEL=2", "MODE=1d", f"MAX_STEPS={steps}", "eval.every=1")
        data = ("data.type=text", "data.tokenizer=char", "data.path=text")
        more = ("data.validation_path=other", "checkpoint.every=4")
        jobs.append(
            into_run(folder, *overrides, *data, *more, planted=memory_of_rank, options=options)
        )
        (folder / "text").write_text("to be or not" + "a" * (SAMPLES * 8 + 1 - 12))
        (folder / "other").write_text("to be or not to be a boat at noon")
    for ended in run_all(jobs, 2):
        assert [one.error for one in ended] == ["", ""], ended[0].err
    for folder, last_before_resume in ((whole, 0), (parts, 4)):
        rows = rows_of(folder)
        assert [found["step"] for found in rows] == [*range(1, STEPS + 1)]
        begin = 0
        for epoch, end in EPOCHS.items():
            first = last_before_resume if begin < last_before_resume < end else begin
            covered = rows[first:end]
            found = dict(rows[end - 1]["epoch"])
            spent = [value for one in covered for name, value in one.items() if "seconds_" in name]
            assert found.pop("seconds") >= 0.999 * sum(spent) > 0
            assert found == {
                "epoch": epoch,
                "first_step": first + 1,
                "last_step": end,
                "train_loss": pytest.approx(mean(covered, "loss")),
                "val_loss": pytest.approx(mean(covered, "val_loss")),
                "memory_bytes": 200,
                "host_memory_bytes": 2000,
            }
            begin = end
        assert [found["step"] for found in rows if "epoch" in found] == [*EPOCHS.values()]
    assert [found["loss"] for found in rows_of(whole)] == [
        found["loss"] for found in rows_of(parts)
    ]


def test_seconds_of_all_epochs_are_those_of_the_table_at_the_end(tmp_path):
    """Data, validation, logs and checkpoints included."""
    log = JsonLinesLog(tmp_path / "log.jsonl")
    times = StepTimes(data=0.25, forward_backward=1.0, optimizer=0.125, validation=4.0, other=8.0)
    with Reporter(claim_folder("demo", "a", output=tmp_path / "run"), log=log) as reporter:
        for step in range(1, 7):
            epoch = {2: 1, 5: 2, 6: 4}.get(step)
            reporter.step(row(step, times=times, ended_epoch=epoch, memory_by_rank=(100, 300)))
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    epochs = [line["epoch"] for line in lines if "epoch" in line]
    assert [(one["epoch"], one["first_step"], one["seconds"]) for one in epochs] == [
        (1, 1, 2 * times.total),
        (2, 3, 3 * times.total),
        (4, 6, times.total),
    ]
    assert [one["memory_bytes"] for one in epochs] == [200] * 3
    assert reporter.times.total == sum(one["seconds"] for one in epochs)


def test_means_of_an_epoch_leave_out_losses_that_are_not_finite():
    meter = EpochMeter()
    meter.add(1, seconds=1.0, loss=math.inf, val_loss=None)
    meter.add(2, seconds=1.0, loss=3.0, val_loss=math.nan)
    meter.add(3, seconds=1.0, loss=4.0, val_loss=2.0)
    summary = meter.end(1, memory_bytes=1, host_memory_bytes=2)
    assert (summary.train_loss, summary.val_loss) == (3.5, 2.0)
    meter.add(4, seconds=1.0, loss=math.inf, val_loss=None)
    record = meter.end(2, memory_bytes=1, host_memory_bytes=2).record()
    assert "train_loss" not in record
    assert "val_loss" not in record


def printed(rows: list[StepMetrics], every: int) -> list[str]:
    file = io.StringIO()
    timer = StepTimer(total_steps=100)
    terminal = Terminal(Console(file=file, width=200), timer, every=every)
    for one in rows:
        terminal.step(one)
    return [line.split("  ")[0] for line in file.getvalue().splitlines()[1:]]


def test_line_of_an_epoch_has_its_steps_time_losses_and_memory():
    assert format_epoch(SUMMARY) == (
        "epoch 2  steps 5-8  43.7 s  loss 2.5000  val loss 2.2500  memory 1 GiB  host memory 3 GiB"
    )
    on_a_cpu = replace(SUMMARY, val_loss=None, host_memory_bytes=2**30)
    assert format_epoch(on_a_cpu) == "epoch 2  steps 5-8  43.7 s  loss 2.5000  memory 1 GiB"


def test_terminal_has_a_line_of_each_epoch_that_is_not_shorter_than_its_rows():
    epoch = replace(SUMMARY, first_step=2, last_step=3)
    rows = [row(1), row(2), row(3, epoch=epoch), row(4, epoch=replace(epoch, epoch=3))]
    assert printed(rows, every=2)[-1] == "epoch 3", "the row of step 4 is due"
    assert [line for line in printed(rows, every=2) if "epoch" in line] == ["epoch 2", "epoch 3"]
    assert [line for line in printed(rows, every=4) if "epoch" in line] == ["epoch 3"]


def test_curves_of_epochs_are_drawn_over_epochs_also_after_a_resume(tmp_path):
    from engine.runs.sinks.tensorboard import TensorBoard

    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps in ((4, 8, 12), (8,)):  # the second start resumes after step 4
        board = TensorBoard(tmp_path, last_step=steps[0] - 4)
        for step in steps:
            summary = replace(SUMMARY, epoch=step // 4, train_loss=len(steps) / step)
            board.step(row(step, epoch=summary))
        board.close()
    found = loader.EventAccumulator(str(tmp_path / "over_epochs"))
    found.Reload()
    curve = {event.step: event.value for event in found.Scalars("epoch/loss_train")}
    assert curve == pytest.approx({1: 3 / 4, 2: 1 / 8})
    assert found.Tags()["scalars"] == [*SUMMARY.curves()]
    assert len(SUMMARY.curves()) == len(asdict(SUMMARY)) - len({"epoch", "first_step", "last_step"})
