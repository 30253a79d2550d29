"""Measures of work that do not depend on the load or the speed of the machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class Calls:
    """``number``: of counted calls."""

    number: int = 0


@contextmanager
def counted() -> Iterator[Calls]:
    """Count the calls of Python and C functions by this thread inside the block."""
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
