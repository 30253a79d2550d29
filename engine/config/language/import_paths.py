"""Finds the file of an import in a config."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from engine.config.language.limits import ConfigValueError

EXTERNAL_PACKAGES = sys.stdlib_module_names | {
    "apex",
    "colossalai",
    "deepspeed",
    "model",
    "model_zoo",
    "titans",
    "torch",
    "transformers",
}
ROOT_MARKS = (".git", "pyproject.toml", "setup.py")


def locate(module: str, level: int, importer: Path) -> Path | None:
    """Return the config file or folder that an import in ``importer`` means; None for an external
    module.

    ``level`` counts the dots of a relative import. An absolute one is searched for in the
    importer's folder and in the folders above it, up to the root of its project.
    Raises ConfigValueError if the import can only mean a config file and there is none.
    """
    parts = module.split(".") if module else []
    if level:
        folder = importer.parents[min(level, len(importer.parents)) - 1]
        located = _file_or_folder(folder, parts)
        if located is None:
            raise ConfigValueError(
                f"no config file {'/'.join(parts)}.py in {folder.name or folder}"
            )
        return located
    if parts[0] in EXTERNAL_PACKAGES:
        return None
    folders = _search_folders(importer)
    for folder in folders:
        located = _file_or_folder(folder, parts)
        if located is not None:
            return located
    for folder in folders:
        if _holds_python(folder / parts[0]):
            raise ConfigValueError(
                f"no config file {'/'.join(parts)}.py in {folder.name or folder}"
            )
    return None


def file_in(folder: Path, parts: list[str]) -> Path | None:
    """Return the file ``a/b.py`` in ``folder`` for ``["a", "b"]``; None if there is none."""
    path = folder.joinpath(*parts)
    file = path.with_name(f"{path.name}.py")
    try:
        return file if file.is_file() else None
    except OSError:  # a name that is too long, a folder without permission
        return None


def _file_or_folder(folder: Path, parts: list[str]) -> Path | None:
    if not parts:
        return folder
    path = folder.joinpath(*parts)
    return file_in(folder, parts) or (path if _holds_python(path) else None)


def _holds_python(folder: Path) -> bool:
    """Return whether an import can mean ``folder``; a folder without Python files is data."""
    try:
        return any(folder.glob("*.py"))
    except OSError:
        return False


def _search_folders(importer: Path) -> list[Path]:
    """List the folders from the importer's up to the root of its project."""
    folders = list(importer.parents)
    for count, folder in enumerate(folders, start=1):
        if any(os.path.lexists(folder / mark) for mark in ROOT_MARKS):
            return folders[:count]
    return folders[:2]
