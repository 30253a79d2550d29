"""The modes there are: every file in ``models/parallel/modes`` that defines ``MODE``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from models.parallel import modes as room
from models.parallel.mode import Mode


@cache
def modes() -> Mapping[str, Mode]:
    """All modes by the name that MODE gives them."""
    found = [
        importlib.import_module(f"{room.__name__}.{module.name}").MODE
        for module in pkgutil.iter_modules(room.__path__)
    ]
    return MappingProxyType({mode.name: mode for mode in found})


def nearest_sizes(mode: Mode, size: int, depth: int) -> list[int]:
    """The legal tensor-parallel sizes next below and next above ``size``, where there are any."""
    below = (n for n in range(size - 1, 0, -1) if mode.axes(n, depth) is not None)
    above = (n for n in range(size + 1, 4 * size + 8 * depth) if mode.axes(n, depth) is not None)
    return [n for n in (next(below, None), next(above, None)) if n is not None]
