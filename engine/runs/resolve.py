"""A run, its checkpoints and weights, by what a user calls them. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.checkpoint.directory import Shelf
from engine.errors import Refused
from engine.runs.folder import RunFolder, runs


def run_with_checkpoints(path: Path | None, root: Path = Path("runs")) -> RunFolder:
    """The run at ``path``, by default the newest under ``root`` that has checkpoints.

    Raises Refused where there is none, or it has none.
    """
    return _run_with("checkpoints", _has_checkpoints, path, root)


def run_with_weights(path: Path | None, root: Path = Path("runs")) -> RunFolder:
    """The same of a run that has checkpoints, or has ended and left its weights."""

    def has_weights(folder: RunFolder) -> bool:
        return _has_checkpoints(folder) or folder.weights.is_file()

    return _run_with("weights", has_weights, path, root)


def pick(folder: RunFolder, which: str) -> Path:
    """The folder of the checkpoint that is the 'latest', the 'best' by validation loss (of equal
    ones the latest), or of a step. Raises Refused where there is none such."""
    shelf = Shelf(folder.checkpoints)
    steps = shelf.steps()
    if which == "latest" and steps:
        return shelf.folder(steps[-1])
    if which == "best":
        losses = [(loss, -step) for step, loss in shelf.losses().items() if loss is not None]
        if losses:
            return shelf.folder(-min(losses)[1])
        raise Refused(f"{folder.path}: no checkpoint was written right after a validation")
    if which.isdecimal() and int(which) in steps:
        return shelf.folder(int(which))
    there = ", ".join(map(str, steps)) or "none"
    raise Refused(f"{folder.path}: no checkpoint {which}; there are: {there}")


def pick_weights(folder: RunFolder, which: str) -> Path:
    """The same; of a run without checkpoints the latest weights are those it ended with, a file."""
    if which == "latest" and not _has_checkpoints(folder) and folder.weights.is_file():
        return folder.weights
    return pick(folder, which)


def _run_with(
    what: str, has: Callable[[RunFolder], bool], path: Path | None, root: Path
) -> RunFolder:
    for folder in runs(root) if path is None else [RunFolder(path)]:
        if has(folder):
            folder.settle()
            return folder
    if path is None:
        raise Refused(f"no run under {root}/ has {what}: name one")
    raise Refused(f"{path} has no {what}")


def _has_checkpoints(folder: RunFolder) -> bool:
    return bool(Shelf(folder.checkpoints).steps())
