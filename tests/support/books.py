"""Books in Languini's folders, as its own tokenising program writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

FIXTURE = [7, 5, 9, 4, 6, 3]
"""Tokens of the books of the fixture; book k (from 1) has the ids 100 k, 100 k + 1, ..."""


def write_books(root: Path, splits: Mapping[str, Sequence[Sequence[int]]]) -> Path:
    """Write the file lists of splits, given by the names of their files, and the ids of their
    books. Return the folder of the vocabulary, which is data.path."""
    folder = root / "vocabulary"
    (folder / "files").mkdir(parents=True)
    for split, books in splits.items():
        rows = []
        for number, ids in enumerate(books, start=1):
            name = f"files/{split}-{number}.epub.npy"
            np.save(folder / name, np.array(ids, np.uint16))
            rows.append([name, str(len(ids))])
        np.save(root / f"file_list_{split}.npy", np.array(rows))
    return folder


def fixture_books() -> list[list[int]]:
    """Return the ids of the six books of the fixture."""
    return [[100 * k + i for i in range(tokens)] for k, tokens in enumerate(FIXTURE, start=1)]
