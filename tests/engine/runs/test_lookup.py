"""The names by which a user refers to checkpoints and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.manifest import TRAINING
from engine.errors import UserError
from engine.runs.folder import RunFolder
from engine.runs.lookup import (
    resolve_checkpoint,
    resolve_weights,
    run_with_checkpoints,
    run_with_weights,
)
from tests.support.checkpoints import training_at


def make(path: Path, losses: Mapping[int, float | None]) -> RunFolder:
    folder = RunFolder(path)
    for step, loss in losses.items():
        checkpoint = CheckpointDirectory(folder.checkpoints).folder(step)
        checkpoint.mkdir(parents=True)
        (checkpoint / TRAINING).write_text(training_at(step, val_loss=loss).dump().decode())
    return folder


def test_a_checkpoint_is_resolved_by_latest_best_or_step(tmp_path):
    folder = make(tmp_path, {1: 2.0, 20: 1.0, 3: 1.0, 100: None})
    found = {
        which: resolve_checkpoint(folder, which).name for which in ("latest", "best", "3", "0100")
    }
    assert found == {
        "latest": "step-00000100",
        "best": "step-00000020",
        "3": "step-00000003",
        "0100": "step-00000100",
    }


@pytest.mark.parametrize(
    ("losses", "which", "message"),
    [
        ({1: None}, "best", "no checkpoint was saved right after a validation"),
        ({1: None, 5: None}, "2", "no checkpoint 2; use one of: 1, 5"),
        ({1: None}, "newest", "no checkpoint newest; use one of: 1"),
        ({}, "latest", "no checkpoint latest; the run has none at all"),
    ],
)
def test_a_missing_checkpoint_is_rejected(tmp_path, losses, which, message):
    with pytest.raises(UserError, match=message):
        resolve_checkpoint(make(tmp_path, losses), which)


def test_the_newest_run_with_checkpoints_is_the_default(tmp_path):
    for name, losses in (
        ("z-20260101-000000", {1: None}),
        ("a-20260201-000000-2", {1: None}),
        ("a-20260201-000000", {1: None}),
        ("a-20260301-000000", {}),
        ("notes", {1: None}),
    ):
        make(tmp_path / name, losses)
    assert run_with_checkpoints(None, tmp_path).path.name == "a-20260201-000000-2"
    assert run_with_checkpoints(tmp_path / "notes").path.name == "notes"
    with pytest.raises(UserError, match="has no checkpoints"):
        run_with_checkpoints(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no run under .* has checkpoints; pass the path of a run"):
        run_with_checkpoints(None, tmp_path / "nowhere")


def test_weights_are_those_of_a_checkpoint_or_the_final_ones(tmp_path):
    for name, losses, ended in (
        ("both-20260101-000000", {1: 1.0, 2: None}, True),
        ("file-20260201-000000", {}, True),
        ("none-20260301-000000", {}, False),
    ):
        folder = make(tmp_path / name, losses)
        folder.path.mkdir(exist_ok=True)
        if ended:
            folder.weights.touch()
    assert run_with_checkpoints(None, tmp_path).path.name == "both-20260101-000000"
    newest = run_with_weights(None, tmp_path)
    assert newest.path.name == "file-20260201-000000"
    assert resolve_weights(newest, "latest") == newest.weights
    with pytest.raises(UserError, match="no checkpoint 2; the run has none at all"):
        resolve_weights(newest, "2")
    both = RunFolder(tmp_path / "both-20260101-000000")
    found = [resolve_weights(both, which).name for which in ("latest", "best", "1")]
    assert found == ["step-00000002", "step-00000001", "step-00000001"]
    with pytest.raises(UserError, match=r"none-20260301-000000 has no weights"):
        run_with_weights(tmp_path / "none-20260301-000000")
    with pytest.raises(UserError, match=r"no run under .* has weights; pass the path of a run"):
        run_with_weights(None, tmp_path / "nowhere")
