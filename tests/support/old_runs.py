"""The runs in tests/old_runs, which an older version recorded, and the programs that users start on
them."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.programs import all_by_hand

OLD = Path(__file__).parents[1] / "old_runs"
EXPECTED = OLD / "expected"
SHARDED = Path("runs/sharded-20261127-092044")
ALONE = Path("runs/alone-20261127-092229")


def unpack(folder: Path) -> Path:
    """Copy the runs, their configs and their data into a new folder, as the user had them."""
    folder.mkdir()
    for file in (*OLD.glob("*.py"), *OLD.glob("harbour.*")):
        shutil.copy(file, folder)
    with tarfile.open(OLD / "runs.tar.xz") as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder)
    return folder


def start(
    folder: Path, ranks: int, *commands: Sequence[str], program: str = "train_gpt"
) -> list[str]:
    """Run the program with each of the arguments, one after another; return the output of rank 0 of
    each."""
    by_rank = all_by_hand(ranks, [(program, arguments) for arguments in commands], folder)
    assert all(left.code == 0 for of_rank in by_rank for left in of_rank), by_rank
    return [left.out for left in by_rank[0]]


def read_log(path: Path) -> dict[int, dict[str, Any]]:
    """Return the rows of a log.jsonl by their step."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row for row in rows}


def key_paths(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield every key in a JSON value, dotted; the items of a list share the key "[]"."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{prefix}{key}"
            yield from key_paths(inner, f"{prefix}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from key_paths(inner, f"{prefix}[].")
