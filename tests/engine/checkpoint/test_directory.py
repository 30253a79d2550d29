"""Names, order and deletion of checkpoints, without training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.manifest import TRAINING
from engine.checkpoint.retention import best_step
from tests.support.checkpoints import training_at


def fill(
    directory: CheckpointDirectory, step: int, val_loss: float | None = None, **more: Any
) -> Path:
    """Create the files of a checkpoint that CheckpointDirectory reads."""
    draft = directory.temporary(step)
    draft.mkdir(parents=True)
    (draft / TRAINING).write_text(training_at(step, val_loss=val_loss, **more).dump().decode())
    directory.commit(step)
    return directory.folder(step)


@pytest.fixture
def directory(tmp_path: Path) -> CheckpointDirectory:
    return CheckpointDirectory(tmp_path / "checkpoints")


def test_checkpoints_are_ordered_by_step_and_not_by_time(directory):
    for age, step in enumerate((20, 3, 100, 123456789)):
        folder = fill(directory, step)
        os.utime(folder, (10**9 - age, 10**9 - age))  # each written before the last
    assert directory.steps() == [3, 20, 100, 123456789]
    assert directory.folder(100).name == "step-00000100"


def test_temporaries_and_other_folders_are_no_checkpoints(directory):
    fill(directory, 2)
    for name in ("step-00000003.tmp", "step-00000004.aside", "step-5", "step-x", "notes"):
        (directory.path / name).mkdir()
    (directory.path / "step-00000006").touch()
    assert directory.steps() == [2]
    assert CheckpointDirectory(directory.path / "nowhere").steps() == []


def test_a_commit_over_an_existing_checkpoint_fails(directory):
    kept = fill(directory, 2) / TRAINING
    before = kept.read_text()
    directory.temporary(2).mkdir()
    (directory.temporary(2) / TRAINING).write_text("new")
    with pytest.raises(OSError, match="not empty"):
        directory.commit(2)
    assert kept.read_text() == before


def test_an_interrupted_removal_leaves_no_partial_checkpoint(directory, monkeypatch):
    folder = fill(directory, 2)
    (folder / "more").touch()

    def die(path: Path, *arguments: object, **named: object) -> None:
        if path.exists():
            (path / "more").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            directory.remove(2)
    assert directory.steps() == []
    directory.remove_temporaries()
    assert list(directory.path.iterdir()) == []


def test_later_checkpoints_are_archived_under_unused_names(directory):
    for step in (1, 2, 3):
        fill(directory, step)
    assert [path.name for path in directory.archive_after(after=1)] == [
        "step-00000002.aside",
        "step-00000003.aside",
    ]
    fill(directory, 3)
    assert [path.name for path in directory.archive_after(after=2)] == ["step-00000003.aside-2"]
    assert directory.steps() == [1]
    assert len(directory.leftovers()) == 3


def test_validation_losses_are_read_per_step(directory):
    fill(directory, 10, 2.5)
    fill(directory, 9)
    (fill(directory, 11) / TRAINING).write_text("{")
    assert directory.losses() == {9: None, 10: 2.5, 11: None}


def test_the_setting_of_the_latest_checkpoint_selects_the_loss(directory):
    by_training = {"checkpoint": {"best_by": "train"}}
    fill(directory, 1, 3.0, train_loss=1.5, settings={"checkpoint": {}})
    fill(directory, 2, 2.0, train_loss=1.6)
    assert directory.losses() == {1: 3.0, 2: 2.0}
    fill(directory, 3, None, train_loss=1.7, settings=by_training)
    assert directory.losses() == {1: 1.5, 2: 1.6, 3: 1.7}
    assert best_step(directory.losses()) == 1
    (fill(directory, 4) / TRAINING).write_text("{")
    assert directory.losses() == {1: 1.5, 2: 1.6, 3: 1.7, 4: None}
