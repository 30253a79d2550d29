"""A run, its checkpoints and weights, by what a user calls them. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.checkpoint.directory import CheckpointDirectory
from engine.errors import UserError
from engine.runs.folder import RunFolder, list_runs


def run_with_checkpoints(path: Path | None, root: Path = Path("runs")) -> RunFolder:
    """The run at ``path``, by default the newest under ``root`` that has checkpoints.

    Raises UserError where there is none, or it has none.
    """
    return _run_with("checkpoints", _has_checkpoints, path, root)


def run_with_weights(path: Path | None, root: Path = Path("runs")) -> RunFolder:
    """The same of a run that has checkpoints, or has ended and left its weights."""

    def has_weights(folder: RunFolder) -> bool:
        return _has_checkpoints(folder) or folder.weights.is_file()

    return _run_with("weights", has_weights, path, root)


def resolve_checkpoint(folder: RunFolder, which: str) -> Path:
    """The folder of the checkpoint that is the 'latest', the 'best' by validation loss (of equal
    ones the latest), or of a step. Raises UserError where there is none such."""
    checkpoints = CheckpointDirectory(folder.checkpoints)
    steps = checkpoints.steps()
    if which == "latest" and steps:
        return checkpoints.folder(steps[-1])
    if which == "best":
        losses = [
            (loss, -step)
            for step, loss in checkpoints.validation_losses().items()
            if loss is not None
        ]
        if losses:
            return checkpoints.folder(-min(losses)[1])
        raise UserError(f"{folder.path}: no checkpoint was written right after a validation")
    if which.isdecimal() and int(which) in steps:
        return checkpoints.folder(int(which))
    there = ", ".join(map(str, steps)) or "none"
    raise UserError(f"{folder.path}: no checkpoint {which}; there are: {there}")


def resolve_weights(folder: RunFolder, which: str) -> Path:
    """The same; of a run without checkpoints the latest weights are those it ended with, a file."""
    if which == "latest" and not _has_checkpoints(folder) and folder.weights.is_file():
        return folder.weights
    return resolve_checkpoint(folder, which)


def _run_with(
    what: str, predicate: Callable[[RunFolder], bool], path: Path | None, root: Path
) -> RunFolder:
    for folder in list_runs(root) if path is None else [RunFolder(path)]:
        if predicate(folder):
            folder.mark_if_killed()
            return folder
    if path is None:
        raise UserError(f"no run under {root}/ has {what}: name one")
    raise UserError(f"{path} has no {what}")


def _has_checkpoints(folder: RunFolder) -> bool:
    return bool(CheckpointDirectory(folder.checkpoints).steps())
