"""Fixture that makes a source request with its own cache."""

from pathlib import Path
from typing import Any

import pytest

from engine.data.source import SourceRequest
from tests.engine.data.support import Ask


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    def make(path: Path | str | tuple[str, ...] | None = None, **changes: Any) -> SourceRequest:
        settings: dict[str, Any] = {
            "tokenizer": "char",
            "validation": 0.1,
            "seq_len": 8,
            "vocab_size": 50304,
            "seed": 7,
            "cache": tmp_path / "cache",
        }
        given = str(path) if isinstance(path, Path) else path
        return SourceRequest(path=given, **settings | changes)

    return make
