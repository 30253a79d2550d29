"""TensorBoard's files as TensorBoard reads them."""

from __future__ import annotations

import contextlib
import errno
import re
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from engine.runs.sinks.tensorboard import TensorBoard
from tests.support.metrics import row


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
