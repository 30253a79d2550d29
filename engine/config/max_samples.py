"""Upper bound of the training samples, from the sizes of data files, before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config.sections.data import FILE_TYPES
from engine.files import paths
from engine.files.compression import is_compressed

if TYPE_CHECKING:
    from engine.config.schema import Settings


def max_samples(settings: Settings) -> int | None:
    """Return an upper bound of the number of training samples by the sizes of the files, as if each
    byte were a token; None if the sizes are unknown."""
    data = settings.data
    if data.path is None or data.type not in FILE_TYPES:
        return None
    size = _max_bytes(data.path)
    if size is None:
        return None
    if data.truncate < 1:  # a share of the characters, each of which may have four bytes
        size = min(size, 4 * int(size * data.truncate))
    return max(0, size - int(size * data.validation) - 1) // settings.seq_len


def _max_bytes(given: str | Sequence[str]) -> int | None:
    """Return the size of the files of data.path; None for folders, patterns and compressed files,
    whose content would have to be read."""
    total = 0
    for path in map(Path, [given] if isinstance(given, str) else given):
        if paths.problem_at(path, paths.FILE) or is_compressed(path):
            return None
        total += path.stat().st_size
    return total
