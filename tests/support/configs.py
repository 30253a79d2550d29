"""Randomly generated configs, and reading them under observation."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from engine.config.reader import read
from engine.config.values import Document, Symbol
from engine.errors import ConfigError
from tests.support.audit import watched

FUZZ = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@st.composite
def sentences(
    draw: st.DrawFn, grammar: Mapping[str, Sequence[str]], symbol: str, depth: int = 4
) -> str:
    """Return a strategy for the texts of ``symbol``; capital letters in the texts of the grammar
    are symbols."""
    names = re.compile(rf"\b[{''.join(grammar)}]\b")
    texts = grammar[symbol]
    if not depth:
        texts = [text for text in texts if not names.search(text)] or texts
    text = draw(st.sampled_from(texts))
    return names.sub(lambda match: draw(sentences(grammar, match[0], max(depth - 1, 0))), text)


def read_safely(folder: Path, data: bytes, overrides: Sequence[str] = ()) -> Document | ConfigError:
    """Read ``data``; fail on any exception but ConfigError."""
    path = folder / "config.py"
    path.write_bytes(data)
    outcome: Document | ConfigError
    with watched() as happened:
        start = time.thread_time()
        try:
            outcome = read(path, overrides, {"HOME": "/", "SIZE": "3"})
        except ConfigError as error:
            outcome = error
        seconds = time.thread_time() - start
    assert happened == []
    assert seconds < 10  # a thousandth is usual
    assert sorted(folder.iterdir()) == [path]
    if isinstance(outcome, Document):
        assert are_plain(outcome.values)
        return outcome
    assert outcome.problems
    for problem in outcome.problems:
        assert str(problem).isprintable()
        assert len(str(problem)) < 1000
    return outcome


def are_plain(value: object) -> bool:
    """Return whether ``value`` has only types that the reader promises, and can be printed."""
    match value:
        case dict():
            return type(value) is dict and all(map(are_plain, [*value, *value.values()]))
        case list() | tuple():
            return all(map(are_plain, value))
        case str():
            return value.encode().decode() == value
    return isinstance(value, None | bool | int | float | Symbol)
