"""TensorBoard's files as TensorBoard reads them."""

from __future__ import annotations

import contextlib
import errno
import math
import re
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from engine.runs.sinks.tensorboard import TensorBoard
from engine.training.step_times import StepTimes
from tests.support.metrics import row


@pytest.fixture(autouse=True)
def numbered_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Number the files of a test from 0: of one second, TensorBoard reads file 10 before file 9."""
    files = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(files, "_global_uid", files.AtomicCounter(0))


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


def test_tensorboard_has_the_config_and_charts_of_the_memory_and_the_time(tmp_path):
    board = TensorBoard(tmp_path, config="BATCH_SIZE = 4\n")
    board.step(row(1, times=StepTimes(data=1.0, optimizer=0.125)))
    board.close()
    found = events(tmp_path)
    (text,) = found.Tensors("config/text_summary")
    assert text.tensor_proto.string_val == [b"```\nBATCH_SIZE = 4\n```"]
    layout_pb2 = pytest.importorskip("tensorboard.plugins.custom_scalar.layout_pb2")
    (stored,) = found.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(stored.tensor_proto.string_val[0])
    drawn = {}
    for category in layout.category:
        (chart,) = category.chart
        (tags,) = chart.multiline.tag
        drawn[category.title] = [tag for tag in found.Tags()["scalars"] if re.fullmatch(tags, tag)]
    assert drawn["memory"] == [f"memory_GiB/rank_{rank}" for rank in range(3)]
    assert drawn["time"] == [
        f"time_ms/{part}" for part in "data forward_backward communication optimizer".split()
    ]
    assert found.Scalars("time_ms/optimizer")[0].value == 125.0


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


def test_losses_are_drawn_over_tokens_and_accelerator_seconds_also_after_a_resume(tmp_path):
    """Each row has 512 tokens more, 2 seconds at 256 tokens per second."""
    board = TensorBoard(tmp_path)
    for step in range(1, 7):
        board.step(row(step, accelerator_seconds=2.0 * step))
    board.close()
    board = TensorBoard(tmp_path, last_step=4)
    board.step(row(5, loss=9.0, val_loss=7.0, accelerator_seconds=10.0))
    board.close()
    expected = {1: 3.0, 2: 1.5, 3: 1.0, 4: 0.75, 5: 9.0}
    for axis, unit in (("tokens", 512), ("gpuseconds", 2)):
        found = scalars(tmp_path / f"over_{axis}")
        assert found == {
            f"loss/train_over_{axis}": pytest.approx(
                {unit * step: loss for step, loss in expected.items()}
            ),
            f"loss/validation_over_{axis}": {5 * unit: 7.0},
            f"validation/perplexity_over_{axis}": {5 * unit: pytest.approx(math.exp(7))},
        }


def test_axis_of_accelerator_seconds_needs_a_reference_accelerator(tmp_path):
    board = TensorBoard(tmp_path)
    board.step(row(1))
    board.close()
    assert not (tmp_path / "over_gpuseconds").exists()


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
