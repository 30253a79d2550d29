"""Weights & Biases in its offline mode, with the real package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config.schema import Settings
from engine.config.sections.model import ModelSettings
from engine.config.sections.outputs import LogSettings
from engine.runs.epochs import EpochSummary
from engine.runs.folder import RunFolder
from engine.runs.sink import OpenSinks, SinkRun
from tests.support.metrics import row

wandb = pytest.importorskip("wandb")

EPOCH = EpochSummary(
    epoch=7,
    first_step=2,
    last_step=3,
    seconds=1.0,
    train_loss=2.75,
    val_loss=None,
    memory_bytes=1,
    host_memory_bytes=1,
)


@pytest.fixture(autouse=True)
def service() -> Iterator[None]:
    """End W&B's process after each test."""
    yield
    wandb.teardown()


def sink_run(folder: Path, mode: str, steps_done: int = 0) -> SinkRun:
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 1, "n_embd": 8, "head_dim": 8, "n_inner": 8}
    model = ModelSettings(**sizes, vocab_size=8, block_size=8)
    log = LogSettings.model_validate(
        {"tensorboard": False, "wandb": mode, "wandb_project": "poems"}
    )
    settings = Settings(
        name="demo", source="demo.py", batch_size=4, seq_len=8, model=model, log=log, seed=77
    )
    folder.mkdir(exist_ok=True)
    return SinkRun(folder=RunFolder(folder), settings=settings, steps_done=steps_done)


def records(folder: Path) -> Iterator[Any]:
    """Yield what `wandb sync` would upload, of all starts of the run."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in stored(file.read_bytes()):
            record = messages.Record()
            record.ParseFromString(data)
            yield record


def stored(log: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log: 7 bytes of W&B's header, then blocks of 32 KiB of pieces
    (checksum, length, kind: 1 whole, 2 first, 3 middle, 4 last)."""
    position, record = 7, b""
    while position + 7 <= len(log):
        if 32768 - position % 32768 < 7:  # the rest of a block is empty
            position += 32768 - position % 32768
        length, kind = int.from_bytes(log[position + 4 : position + 6], "little"), log[position + 6]
        position += 7
        record += log[position : position + length]
        position += length
        if kind in (1, 4):
            yield record
            record = b""


def history(folder: Path) -> list[dict[str, Any]]:
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in it}
        for it in (record.history.item for record in records(folder))
        if it
    ]


def test_offline_wandb_has_every_curve_the_settings_and_one_id_over_a_resume(tmp_path):
    warnings: list[str] = []
    folder = tmp_path / "demo-1"
    sinks = OpenSinks.open(sink_run(folder, "offline"), warnings.append)
    for step in range(1, 4):
        sinks.step(row(step, accelerator_seconds=2.0 * step))
    ((title, command),) = sinks.views
    sinks.close()
    wandb.teardown()  # a resumed run is another process
    files = Path(command.removeprefix("wandb sync "))
    files.rename(f"{files}-first")  # W&B gives two starts within a second one folder
    sinks = OpenSinks.open(sink_run(folder, "offline", steps_done=2), warnings.append)
    sinks.step(row(3, loss=9.0, val_loss=2.5, epoch=EPOCH))
    sinks.close()
    wandb.teardown()  # its process writes the rest of the file
    assert warnings == []
    assert title == "W&B"
    found = history(folder)
    assert [(line["step"], line["loss/train"]) for line in found] == [
        (1, 3.0),
        (2, 1.5),
        (3, 1.0),
        (3, 9.0),
    ]
    assert found[-1]["loss/validation"] == 2.5
    assert (found[0]["tokens"], found[0]["accelerator_seconds"]) == (512, 2.0)
    runs = [record.run for record in records(folder) if record.HasField("run")]
    assert {(one.project, one.display_name) for one in runs} == {("poems", "demo-1")}
    assert len({one.run_id for one in runs}) == 1
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["seed"] == 77
    axes = {one.metric.glob_name or one.metric.name: one.metric for one in records(folder)}
    assert axes["*"].step_metric == "step"
    assert axes["epoch/*"].step_metric == "epoch"
    assert (found[-1]["epoch"], found[-1]["epoch/loss_train"]) == (7, 2.75)
    assert "epoch" not in found[0]


def test_wandb_without_a_login_is_reported_and_left_out(tmp_path, monkeypatch):
    """It does not ask for a key, which nobody may be there to type."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    warnings: list[str] = []
    sinks = OpenSinks.open(sink_run(tmp_path / "run", "online"), warnings.append)
    (line,) = warnings
    assert line.startswith("warning: log.wandb failed: nobody is logged in to W&B")
    assert "log.wandb='offline'" in line
    sinks.step(row(1))
    assert sinks.views == []
