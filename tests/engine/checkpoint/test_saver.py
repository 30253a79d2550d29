"""The steps at which a run saves, and the checkpoints that it keeps."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from engine.checkpoint.load import SavedCheckpoint
from engine.data.text_loss.bits_per_byte import TextLoss
from engine.runs.folder import RunFolder
from engine.runs.start_candidates import StartOptions
from engine.training.trainer import Trainer
from engine.world.world import World
from tests.support.jobs import RUN, Ended, checkpoints_of, into_run, run, run_all

LOSSES = [5.0, 1.0, 4.0, float("nan"), 2.0, 3.0]


@contextlib.contextmanager
def validating(world: World) -> Iterator[None]:
    losses = iter(LOSSES)
    with patch.object(Trainer, "validate", lambda self: TextLoss(loss=next(losses), targets=1)):
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Ended]]:
    """Runs of six steps in one process: name -> folder and result."""
    root = tmp_path_factory.mktemp("saver")
    settings = {
        "never": ("checkpoint.every=None",),
        "steps": ("checkpoint.every=4", "checkpoint.keep=9"),
        "end": ("checkpoint.every=3", "checkpoint.keep=9"),
        "epochs": (
            *("checkpoint.every=None", "checkpoint.epochs=0.75", "checkpoint.keep=9"),
            *("data.type=text", "data.tokenizer=char", "data.path=text", "data.validation=0"),
        ),
        "minutes": ("checkpoint.every=None", "checkpoint.minutes=1e-9", "checkpoint.keep=9"),
        "hours": ("checkpoint.every=None", "checkpoint.minutes=600.0"),
        "best": ("checkpoint.every=1", "checkpoint.keep=2", "eval.every=1"),
        "latest": (
            "checkpoint.every=1",
            "checkpoint.keep=2",
            "eval.every=1",
            "checkpoint.best=False",
        ),
        "asynchronous": ("checkpoint.every=1", "checkpoint.keep=4", "checkpoint.asynchronous=True"),
    }
    jobs = [
        into_run(root / name, "MAX_STEPS=6", *overrides, planted=validating)
        for name, overrides in settings.items()
    ]
    (root / "epochs" / "text").write_text("sixteen samples " * 8 + "!")  # four steps an epoch
    ended = [of_ranks[0] for of_ranks in run_all(jobs)]
    assert [one.error for one in ended] == [""] * len(ended)
    return {name: (root / name, one) for name, one in zip(settings, ended, strict=True)}


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("never", []),
        ("steps", [4, 6]),  # and at the end
        ("end", [3, 6]),  # once
        ("epochs", [3, 6]),
        ("minutes", [1, 2, 3, 4, 5, 6]),
        ("hours", [6]),
        ("best", [2, 5, 6]),
        ("latest", [5, 6]),
        ("asynchronous", [3, 4, 5, 6]),
    ],
)
def test_settings_determine_saved_steps(saved, name, steps):
    folder, ended = saved[name]
    assert checkpoints_of(folder).steps() == steps
    assert checkpoints_of(folder).leftovers() == []
    for step in steps:
        assert SavedCheckpoint(checkpoints_of(folder).folder(step)).verify() == []
    assert (f"{steps[-1]:08}" in ended.out) if steps else ("saved" not in ended.out)


def test_a_nan_loss_is_never_the_best(saved):
    assert checkpoints_of(saved["best"][0]).losses() == {2: 1.0, 5: 2.0, 6: 3.0}


def test_the_training_loss_of_a_checkpoint_is_the_mean_since_the_previous_checkpoint(saved):
    folder, _ = saved["steps"]
    rows = [json.loads(line)["loss"] for line in (folder / RUN / "log.jsonl").open()]
    found = [SavedCheckpoint(checkpoints_of(folder).folder(step)).training for step in (4, 6)]
    expected = [sum(rows[:4]) / 4, sum(rows[4:]) / 2]
    assert [state.train_loss for state in found] == pytest.approx(expected, rel=1e-12)


@contextlib.contextmanager
def stopping_one_rank(world: World) -> Iterator[None]:
    """Send SIGTERM to the last rank during the second step."""
    healthy = Trainer.step

    def step(self: Trainer, step: int, **more: Any) -> Any:
        if step == 2 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return healthy(self, step, **more)

    with patch.object(Trainer, "step", step):
        yield


@pytest.mark.parametrize("every", [40, None])
def test_a_signal_to_one_rank_saves_a_checkpoint_of_all_ranks(tmp_path, every):
    saving = f"checkpoint.every={every}"
    ended = run(into_run(tmp_path, "MAX_STEPS=50", saving, planted=stopping_one_rank), 2)
    assert [one.error for one in ended] == ["", ""]
    assert checkpoints_of(tmp_path).steps() == [2]
    assert SavedCheckpoint(checkpoints_of(tmp_path).folder(2)).verify() == []
    assert RunFolder(tmp_path / "run").read_status()["state"] == "interrupted"
    assert max(ended[0].batches) == 2

    # The older checkpoint does not stay the latest: evaluate, export and --resume go by that
    resuming = StartOptions(resume="run", output=RUN)
    ended = run(into_run(tmp_path, "MAX_STEPS=5", saving, options=resuming), 2)
    assert [one.error for one in ended] == ["", ""]
    assert checkpoints_of(tmp_path).steps() == [2, 5]
    assert RunFolder(tmp_path / "run").read_status()["state"] == "finished"
