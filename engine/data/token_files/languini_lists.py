"""Languini's lists of the files of a split: their paths and numbers of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.data.token_files.token_shards import TokenShard, open_shard
from engine.errors import UserError

PREFIX = "file_list_"
LISTS = {
    "test": "test_iid",
    "langlearn": "test_langlearn",
    "discworld": "test_discworld",
    "java": "test_java",
    "stats": "test_statistics",
    "wood": "test_woodworking",
}
"""Languini's names of splits whose file list has another name."""


@dataclass(frozen=True, kw_only=True)
class Book:
    """A document of a file list."""

    shard: TokenShard
    listed: int
    """The number of tokens that the list states, by which books are assigned to lanes. It may
    differ from ``shard.tokens``: the list may have been made with another vocabulary."""


def list_path(root: Path, split: str) -> Path:
    """Return the path of the file list of a split."""
    return root / f"{PREFIX}{LISTS.get(split, split)}.npy"


def read_list(path: Path, folder: Path) -> list[Book]:
    """Read a file list, and the headers of its shards. Raises UserError."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable file list: {error}; copy the list again"
        ) from None
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind != "U":
        raise UserError(
            f"{path} is not a file list: an array of {rows.dtype} and shape {rows.shape}; it must "
            "be text of shape [N, 2], a path and its number of tokens"
        )
    books = []
    for name, length in rows.tolist():
        if not length.isdecimal():
            raise UserError(
                f"{path}: the number of tokens of {name!r} is {length!r}, not a whole number; "
                "correct the list"
            )
        books.append(Book(shard=open_shard(folder / name), listed=int(length)))
    return books


def lists_in(root: Path) -> dict[str, Path]:
    """Return the file lists in a folder by the names of their splits."""
    names = {file: split for split, file in LISTS.items()}
    found = sorted(root.glob(f"{PREFIX}*.npy"))
    files = {path.stem.removeprefix(PREFIX): path for path in found}
    return {names.get(file, file): path for file, path in files.items()}
