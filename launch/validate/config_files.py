"""Which configs are meant by files and folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.errors import UserError


def config_files(named: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the ``*.py`` directly in them, those with ``_`` in front aside:
    they are there to be imported by others. Each once.

    Raises UserError where nothing is named or a folder holds no config.
    """
    if not named:
        raise UserError("name a config: cuboid validate FILE|FOLDER...")
    return list(dict.fromkeys(file for path in named for file in _files(path)))


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    found = sorted(file for file in path.glob("[!_]*.py") if file.is_file())
    if not found:
        raise UserError(f"{path}: holds no config (*.py)")
    yield from found
