"""Writes a model in a form that others read: every file in ``engine/inout/exports`` is a form.

A form is a module whose ``EXPORT`` is an ``Exporter``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine import discover
from engine.atomic_write import OTHER_OUT_REMEDY, atomic_path, refuse_existing
from engine.checkpoint.directory import CheckpointDirectory
from engine.errors import UserError
from engine.inout.saved_model import SavedModel
from engine.inout.tensor_writers import total_bytes
from engine.runs.folder import RunFolder

EXPORTERS_PACKAGE = "engine.inout.exports"
EXISTING_REMEDY = f"{OTHER_OUT_REMEDY}, or --force to replace it"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """``shard_bytes``: how large a file may be, where a form has several."""

    dtype: torch.dtype
    shard_bytes: int


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """A form. ``suffix`` ends the name of what it writes; ``write`` makes it at a path where there
    is nothing, and raises ValueError for a model that it cannot hold. ``module_names`` of the
    files in it, as a pattern, if it is a folder."""

    suffix: str
    write: Callable[[Path, SavedModel, ExportOptions], None]
    names: str | None = None


def exporter(name: str) -> Exporter:
    found: Exporter = discover.load(EXPORTERS_PACKAGE, name).EXPORT
    return found


def exporter_names() -> list[str]:
    return discover.module_names(EXPORTERS_PACKAGE)


def export(
    model: SavedModel, to: Exporter, options: ExportOptions, *, out: Path | None, force: bool
) -> Path:
    """Write the model, to ``out`` or among the exports of its run; the path.

    Raises:
        UserError: there is something already, the form cannot hold the model, or the model is not
            what was written.
        RunError: it could not be written or read.
    """
    path = out or _default_path(model, to)
    _require_writable(path, to, force)
    if problems := model.verify(0, 1):
        raise UserError(f"{model.path} is not what was written: {'; '.join(problems)}")
    needs = total_bytes(model.shapes, options.dtype)
    try:
        with atomic_path(path, required_bytes=needs, replace=force, remedy=EXISTING_REMEDY) as new:
            to.write(new, model, options)
    except ValueError as error:
        raise UserError(f"{model.path}: {error}") from None
    return path


def _default_path(model: SavedModel, to: Exporter) -> Path:
    """RUN/exports/step-00000100-hf; beside other models likewise."""
    checkpoints = CheckpointDirectory(model.path.parent)
    in_run = checkpoints.path == RunFolder(checkpoints.path.parent).checkpoints
    folder = checkpoints.path.parent if in_run else checkpoints.path
    return folder / "exports" / f"{model.path.stem}{to.suffix}"


def _require_writable(path: Path, to: Exporter, force: bool) -> None:
    """Whether that path may be written. Raises UserError."""
    refuse_existing(path, replace=force, remedy=EXISTING_REMEDY)
    if not path.exists():
        return
    if path.is_dir() != (to.names is not None):
        raise UserError(
            f"{path} is {'a folder' if path.is_dir() else 'no folder'}: {OTHER_OUT_REMEDY}"
        )
    for other in path.iterdir() if to.names is not None else ():
        if not re.fullmatch(to.names or "", other.name):
            raise UserError(
                f"{path} holds {other.name}, which --force does not remove: {OTHER_OUT_REMEDY}"
            )
