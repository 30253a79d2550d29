"""log.jsonl as other programs read it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from engine.runs.metrics import JsonLinesLog
from engine.training.step_times import StepTimes
from tests.support.metrics import row


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_line_of_the_log_has_exactly_these_fields(tmp_path):
    log = JsonLinesLog(tmp_path / "log.jsonl")
    log.step(row(1, mfu=0.4, flops_per_second=1e9))
    log.step(row(2, val_loss=2.5, val_loss_per_byte=1.25))
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert first == {
        "step": 1,
        "loss": 3.0,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens": 512,
        "tokens_per_second": 1000.0,
        "memory_bytes": 300,
    }
    assert second == first | {
        "step": 2,
        "loss": 1.5,
        "tokens": 1024,
        "val_loss": 2.5,
        "val_perplexity": math.exp(2.5),
        "val_loss_per_byte": 1.25,
    }


def test_the_log_has_the_seconds_of_a_step_by_kind_of_work(tmp_path):
    times = StepTimes(
        data=0.25,
        forward_backward=1.0,
        communication=0.5,
        optimizer=0.125,
        validation=4.0,
        other=8.0,
    )
    log = JsonLinesLog(tmp_path / "log.jsonl")
    log.step(row(1, times=times, seconds=1.875))
    log.step(row(2, times=times, seconds=1.875, val_loss=2.5))
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert {name: x for name, x in first.items() if name.startswith("seconds")} == {
        "seconds": 1.875,
        "seconds_data": 0.25,
        "seconds_forward_backward": 1.0,
        "seconds_communication": 0.5,
        "seconds_optimizer": 0.125,
    }
    assert second["seconds_validation"] == 4.0


def test_fp16_logs_the_loss_scale_and_the_skipped_steps(tmp_path):
    log = JsonLinesLog(tmp_path / "log.jsonl")
    log.step(row(1, loss_scale=2.0**15, skipped=1, grad_norm=math.inf))
    log.step(row(2, loss_scale=2.0**15, skipped=0))
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["loss_scale"], first["skipped"], first["grad_norm"]) == (32768.0, 1, None)
    assert second["skipped"] == 0


def test_a_loss_is_logged_with_all_its_bits(tmp_path):
    log = JsonLinesLog(tmp_path / "log.jsonl")
    log.step(row(1, loss=0.1 + 0.2))
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == 0.1 + 0.2


def test_each_line_is_written_before_the_next_step(tmp_path):
    log = JsonLinesLog(tmp_path / "log.jsonl")
    for step in range(1, 4):
        log.step(row(step))
        assert steps(tmp_path / "log.jsonl") == list(range(1, step + 1))


def test_numbers_that_are_not_finite_are_logged_as_null(tmp_path):
    log = JsonLinesLog(tmp_path / "log.jsonl")
    log.step(row(1, grad_norm=math.inf, val_loss=math.nan))
    text = (tmp_path / "log.jsonl").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["grad_norm"] is None
    assert found["val_loss"] is None


def test_a_resume_deletes_later_and_truncated_lines_of_the_log(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLinesLog(path)
    for step in range(1, 7):
        log.step(row(step))
    log.close()
    with path.open("a") as file:
        file.write('{"step": 3, "lo')  # torn by a crash
    log = JsonLinesLog(path, last_step=4)
    assert steps(path) == [1, 2, 3, 4]
    log.step(row(5))
    assert steps(path) == [1, 2, 3, 4, 5]
    log.close()
    JsonLinesLog(path).close()
    assert steps(path) == []
