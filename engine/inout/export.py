"""Exports a model. Every module in ``engine/inout/exports`` is a format, named by its file.

A format is a module whose ``EXPORT`` is an ``Exporter``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine import discover
from engine.checkpoint.directory import CheckpointDirectory
from engine.errors import UserError
from engine.files.atomic_write import OTHER_OUT_REMEDY, atomic_path, refuse_existing
from engine.inout.saved_model import SavedModel
from engine.inout.tensor_writers import total_bytes
from engine.runs.folder import RunFolder

EXPORTERS_PACKAGE = "engine.inout.exports"
EXISTING_REMEDY = f"{OTHER_OUT_REMEDY}, or --force to replace it"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export."""

    dtype: torch.dtype
    """The dtype of the exported parameters."""
    shard_bytes: int
    """Maximum size of a file, in formats of several files."""


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """An export format."""

    suffix: str
    """Suffix of the default file name."""
    write: Callable[[Path, SavedModel, ExportOptions], None]
    """Writes the model to a path that does not exist. Raises ValueError for a model that the format
    cannot represent."""
    names: str | None = None
    """Regular expression of the file names in a folder; None: the format is one file."""


def exporter(name: str) -> Exporter:
    """Load the export format ``name``."""
    entry: Exporter = discover.load(EXPORTERS_PACKAGE, name).EXPORT
    return entry


def export(
    model: SavedModel, to: Exporter, options: ExportOptions, *, out: Path | None, force: bool
) -> Path:
    """Verify the model and write it atomically to ``out``, by default to the folder ``exports`` of
    the model's run. Return the path.

    Raises:
        UserError: the path exists, the format cannot represent the model, or the model is corrupt.
        RunError: a file cannot be read or written.
    """
    path = out or _default_path(model, to)
    _require_writable(path, to, force)
    model.require_intact()
    needs = total_bytes(model.shapes, options.dtype)
    try:
        with atomic_path(path, required_bytes=needs, replace=force, remedy=EXISTING_REMEDY) as new:
            to.write(new, model, options)
    except ValueError as error:
        raise UserError(f"{model.path}: {error}") from None
    return path


def _default_path(model: SavedModel, to: Exporter) -> Path:
    """Return RUN/exports/step-00000100-hf, or FOLDER/exports/NAME-hf if the model is not in a
    run."""
    checkpoints = CheckpointDirectory(model.path.parent)
    in_run = checkpoints.path == RunFolder(checkpoints.path.parent).checkpoints
    folder = checkpoints.path.parent if in_run else checkpoints.path
    return folder / "exports" / f"{model.path.stem}{to.suffix}"


def _require_writable(path: Path, to: Exporter, force: bool) -> None:
    """Raise UserError if the export must not create or replace ``path``."""
    refuse_existing(path, replace=force, remedy=EXISTING_REMEDY)
    if not path.exists():
        return
    if path.is_dir() != (to.names is not None):
        kind, needed = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        raise UserError(
            f"{path} is {kind}, but the format of --to writes {needed}; {OTHER_OUT_REMEDY}"
        )
    for other in path.iterdir() if to.names is not None else ():
        if not re.fullmatch(to.names or "", other.name):
            raise UserError(
                f"{path} contains {other.name}, which --force does not remove; {OTHER_OUT_REMEDY}"
            )
