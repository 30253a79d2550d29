"""Observation of the interpreter: executed code, written files, started programs."""

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager

HARMLESS = {
    "compile",  # only into a syntax tree: checked below
    "glob.glob",
    "object.__getattr__",
    "os.listdir",
    "os.scandir",
    "pathlib.Path.glob",
    "sys._getframe",
}
_seen: list[str] | None = None  # None: not watching; a hook cannot be taken off again


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is None:
        return
    reading = event == "open" and arguments[1] in ("r", "rb")
    if event not in HARMLESS and not reading:
        _seen.append(f"{event}{arguments!r}"[:200])


@contextmanager
def watched() -> Iterator[list[str]]:
    """Yield a list of the audit events inside the block, without reads: imports, started programs,
    writes ..."""
    global _seen
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


sys.addaudithook(_hook)
ast.parse("")  # imports what it needs now, not inside a block
