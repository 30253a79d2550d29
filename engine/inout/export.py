"""Writes a model in a form that others read: every file in ``engine/inout/exports`` is a form.

A form is a module whose ``EXPORT`` is an ``Export``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine import discover
from engine.atomic_write import ANOTHER, draft, refuse_existing
from engine.checkpoint.directory import Shelf
from engine.errors import Refused
from engine.inout.saved_model import Trained
from engine.inout.tensor_writers import size_of
from engine.runs.folder import RunFolder

FORMS = "engine.inout.exports"
OR_FORCE = f"{ANOTHER}, or --force to replace it"


@dataclass(frozen=True, kw_only=True)
class Options:
    """``shard_bytes``: how large a file may be, where a form has several."""

    dtype: torch.dtype
    shard_bytes: int


@dataclass(frozen=True, kw_only=True)
class Export:
    """A form. ``suffix`` ends the name of what it writes; ``write`` makes it at a path where there
    is nothing, and raises ValueError for a model that it cannot hold. ``names`` of the files in it,
    as a pattern, if it is a folder."""

    suffix: str
    write: Callable[[Path, Trained, Options], None]
    names: str | None = None


def form(name: str) -> Export:
    found: Export = importlib.import_module(f"{FORMS}.{name}").EXPORT
    return found


def forms() -> list[str]:
    return discover.names(FORMS)


def export(model: Trained, to: Export, options: Options, *, out: Path | None, force: bool) -> Path:
    """Write the model, to ``out`` or among the exports of its run; the path.

    Raises:
        Refused: there is something already, the form cannot hold the model, or the model is not
            what was written.
        Failed: it could not be written or read.
    """
    path = out or _default(model, to)
    _look(path, to, force)
    if problems := model.problems(0, 1):
        raise Refused(f"{model.path} is not what was written: {'; '.join(problems)}")
    needs = size_of(model.shapes, options.dtype)
    try:
        with draft(path, needs=needs, replace=force, remedy=OR_FORCE) as new:
            to.write(new, model, options)
    except ValueError as error:
        raise Refused(f"{model.path}: {error}") from None
    return path


def _default(model: Trained, to: Export) -> Path:
    """RUN/exports/step-00000100-hf; beside other models likewise."""
    shelf = Shelf(model.path.parent)
    in_run = shelf.path == RunFolder(shelf.path.parent).checkpoints
    home = shelf.path.parent if in_run else shelf.path
    return home / "exports" / f"{model.path.stem}{to.suffix}"


def _look(path: Path, to: Export, force: bool) -> None:
    """Whether that path may be written. Raises Refused."""
    refuse_existing(path, replace=force, remedy=OR_FORCE)
    if not path.exists():
        return
    if path.is_dir() != (to.names is not None):
        raise Refused(f"{path} is {'a folder' if path.is_dir() else 'no folder'}: {ANOTHER}")
    for other in path.iterdir() if to.names is not None else ():
        if not re.fullmatch(to.names or "", other.name):
            raise Refused(f"{path} holds {other.name}, which --force does not remove: {ANOTHER}")
