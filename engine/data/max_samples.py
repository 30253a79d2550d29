"""Bounds on the data that the size of its files gives, before anything is read. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.config.derived import FILE_TYPES
from engine.data.data_file import max_bytes

if TYPE_CHECKING:
    from engine.config.schema import Settings


def max_samples(settings: Settings) -> int | None:
    """The most samples that there can be to train on, as a token stands for a byte or more; None
    where the size of files does not tell."""
    data = settings.data
    if data.path is None or data.type not in FILE_TYPES:
        return None
    there = max_bytes(data.path)
    if there is None:
        return None
    return max(0, there - int(there * data.validation) - 1) // settings.seq_len
