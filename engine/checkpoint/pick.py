"""A checkpoint of a run, by what a user calls it. No torch."""

from __future__ import annotations

from pathlib import Path

from engine.checkpoint.shelf import Shelf
from engine.errors import Refused
from engine.run_folder import RunFolder, runs


def run_with_checkpoints(path: Path | None, root: Path = Path("runs")) -> RunFolder:
    """The run at ``path``, by default the newest under ``root`` that has checkpoints.

    Raises Refused where there is none, or it has none.
    """
    for folder in runs(root) if path is None else [RunFolder(path)]:
        if Shelf(folder.checkpoints).steps():
            return folder
    if path is None:
        raise Refused(f"no run under {root}/ has checkpoints: name one")
    raise Refused(f"{path} has no checkpoints")


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
