"""log.jsonl as other programs read it, and TensorBoard as TensorBoard reads it."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import re
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from engine.runs.metrics import JsonLinesLog, StepMetrics, TensorBoard


def row(step: int, **changes: Any) -> StepMetrics:
    values: dict[str, Any] = {
        "step": step,
        "loss": 3.0 / step,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens": 512 * step,
        "tokens_per_second": 1000.0,
        "seconds": 0.5,
        "memory_by_rank": (100, 300, 200),
    }
    return StepMetrics(**values | changes)


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_line_of_the_log_has_exactly_these_fields(tmp_path):
    log = JsonLinesLog(tmp_path / "log.jsonl")
    log.step(row(1, mfu=0.4, flops_per_second=1e9))
    log.step(row(2, val_loss=2.5))
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
    assert second == first | {"step": 2, "loss": 1.5, "tokens": 1024, "val_loss": 2.5}


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


def events(folder: Path) -> Any:
    """Read a folder with TensorBoard's loader."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = loader.EventAccumulator(str(folder))
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return TensorBoard's curves in its order: tag -> step -> value."""
    found = events(folder)
    return {
        tag: {event.step: event.value for event in found.Scalars(tag)}
        for tag in sorted(found.Tags()["scalars"])
    }


def test_tensorboard_reads_every_curve(tmp_path):
    board = TensorBoard(tmp_path, config="BATCH_SIZE = 4\n")
    gib = tuple(number * 2**30 for number in (1, 3, 2))
    board.step(row(1, memory_by_rank=gib))
    more = {"val_loss": 2.5, "flops_per_second": 1.5e12, "mfu": 0.25}
    board.step(row(2, **more, loss_scale=8.0, skipped=3, memory_by_rank=gib))
    board.close()
    found = scalars(tmp_path)
    assert found["loss/train"] == {1: 3.0, 2: 1.5}
    assert found["loss/validation"] == {2: 2.5}
    assert found["optimizer/learning_rate"][1] == pytest.approx(1e-3)
    assert found["optimizer/gradient_norm"] == {1: 0.5, 2: 0.5}
    assert found["optimizer/loss_scale"] == {2: 8.0}
    assert found["optimizer/skipped_steps"] == {2: 3.0}
    assert found["speed/tokens_per_second"] == {1: 1000.0, 2: 1000.0}
    assert found["speed/ms_per_step"] == {1: 500.0, 2: 500.0}
    assert [found[f"memory_GiB/rank_{rank}"][2] for rank in range(3)] == [1, 3, 2]
    assert found["speed/MFU"] == {2: 0.25}
    assert found["speed/model_TFLOP_per_second"] == {2: 1.5}
    assert next(iter(found)).startswith("loss/"), "the loss is the first of the charts"


def test_tensorboard_has_the_config_and_the_memory_of_all_ranks_in_one_chart(tmp_path):
    board = TensorBoard(tmp_path, config="BATCH_SIZE = 4\n")
    board.step(row(1))
    board.close()
    found = events(tmp_path)
    (text,) = found.Tensors("config/text_summary")
    assert text.tensor_proto.string_val == [b"```\nBATCH_SIZE = 4\n```"]
    layout_pb2 = pytest.importorskip("tensorboard.plugins.custom_scalar.layout_pb2")
    (stored,) = found.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(stored.tensor_proto.string_val[0])
    (chart,) = layout.category[0].chart
    (tags,) = chart.multiline.tag
    drawn = [tag for tag in found.Tags()["scalars"] if re.fullmatch(tags, tag)]
    assert drawn == [f"memory_GiB/rank_{rank}" for rank in range(3)]


def test_a_resume_hides_later_steps_in_tensorboard(tmp_path):
    board = TensorBoard(tmp_path / "tb")
    for step in range(1, 7):
        board.step(row(step))
    board.close()
    board = TensorBoard(tmp_path / "tb", last_step=4)
    board.step(row(5, loss=9.0))
    board.close()
    assert scalars(tmp_path / "tb")["loss/train"] == pytest.approx(
        {1: 3.0, 2: 1.5, 3: 1.0, 4: 0.75, 5: 9.0}
    )


def test_a_disk_error_in_tensorboards_thread_is_raised_by_the_next_step(tmp_path, monkeypatch):
    """The thread prints nothing."""
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
    full = OSError(errno.ENOSPC, "No space left on device")
    printed: list[threading.ExceptHookArgs] = []
    hook = printed.append
    monkeypatch.setattr(threading, "excepthook", hook)
    board = TensorBoard(tmp_path)

    def train() -> None:
        for step in range(1, 100):
            board.step(row(step))

    failing = patch.object(writer.RecordWriter, "write", side_effect=full)
    with failing, pytest.raises(OSError, match="No space left") as caught:
        train()
    assert caught.value.filename == str(tmp_path)
    with contextlib.suppress(OSError):
        board.close()
    assert printed == []
    assert threading.excepthook == hook
