"""The journal of an unfinished prepare: lines that a kill cut off are dropped."""

from pathlib import Path

import pytest

from engine.errors import UserError
from engine.prepare.journal import Journal

REQUEST = {"inputs": ["a"]}


def test_journal_with_a_line_cut_off_continues_after_the_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "tokens.unfinished"
    for number in range(3):
        with Journal(path, REQUEST) as journal:
            assert [shard["file"] for shard in journal.shards] == list(range(number))
            journal.add({"file": number})
        with path.open("ab") as file:
            file.write(b'{"file": "cut o')


def test_journal_in_use_or_of_another_request_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "tokens.unfinished"
    with (
        Journal(path, REQUEST),
        pytest.raises(UserError, match="is being written by another process"),
    ):
        Journal(path, REQUEST)
    with pytest.raises(UserError, match="has unfinished work of other inputs"):
        Journal(path, {"inputs": ["b"]})
    assert Journal(path, REQUEST).shards == []
