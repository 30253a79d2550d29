"""Resolves the names by which a user refers to a run, a checkpoint or weights. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.retention import best_step
from engine.errors import UserError
from engine.runs.folder import RunFolder, list_runs


def run_with_checkpoints(path: Path | None, root: Path = Path("runs")) -> RunFolder:
    """Return the run at ``path``, by default the newest under ``root`` that has checkpoints.

    Raises UserError if there is no such run.
    """
    return _run_with("checkpoints", _has_checkpoints, path, root)


def run_with_weights(path: Path | None, root: Path = Path("runs")) -> RunFolder:
    """Return the run at ``path``, by default the newest under ``root`` that has a checkpoint or
    final weights. Raises UserError if there is no such run."""

    def has_weights(folder: RunFolder) -> bool:
        return _has_checkpoints(folder) or folder.weights.is_file()

    return _run_with("weights", has_weights, path, root)


def resolve_checkpoint(folder: RunFolder, which: str) -> Path:
    """Return the folder of the checkpoint ``which``: 'latest', 'best' (by the loss that
    checkpoint.best_by names) or a step number. Raises UserError if it does not exist."""
    checkpoints = CheckpointDirectory(folder.checkpoints)
    steps = checkpoints.steps()
    if which == "latest" and steps:
        return checkpoints.folder(steps[-1])
    if which == "best":
        step = best_step(checkpoints.losses())
        if step is None:
            raise UserError(
                f"{folder.path}: no checkpoint was saved right after a validation, so none is the "
                "best; name one by its step"
            )
        return checkpoints.folder(step)
    if which.isdecimal() and int(which) in steps:
        return checkpoints.folder(int(which))
    remedy = f"use one of: {', '.join(map(str, steps))}" if steps else "the run has none at all"
    raise UserError(f"{folder.path}: no checkpoint {which}; {remedy}")


def resolve_weights(folder: RunFolder, which: str) -> Path:
    """Return the path of the weights ``which``: a checkpoint as in ``resolve_checkpoint``; for
    'latest' in a run without checkpoints, the file of the run's final weights. Raises UserError if
    they do not exist."""
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
        raise UserError(f"no run under {root}/ has {what}; pass the path of a run")
    raise UserError(f"{path} has no {what}; pass the path of another run")


def _has_checkpoints(folder: RunFolder) -> bool:
    return bool(CheckpointDirectory(folder.checkpoints).steps())
