"""Measures of work that a busy or slow machine does not change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class Calls:
    """``number``: of the calls that were counted."""

    number: int = 0


@contextmanager
def counted() -> Iterator[Calls]:
    """Count the calls of functions, Python's and C's, that this thread makes inside."""
    calls = Calls()

    def see(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            calls.number += 1

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        yield calls
    finally:
        sys.setprofile(before)
