"""The registry of modes: every file in ``models/parallel/modes`` defines a ``MODE``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from models.parallel import modes as package
from models.parallel.mode import Mode


@cache
def modes() -> Mapping[str, Mode]:
    """Return all modes by name; the names are the values of the setting MODE."""
    loaded = [
        importlib.import_module(f"{package.__name__}.{module.name}").MODE
        for module in pkgutil.iter_modules(package.__path__)
    ]
    return MappingProxyType({mode.name: mode for mode in loaded})


def nearest_sizes(mode: Mode, size: int, depth: int) -> list[int]:
    """Return the nearest legal tensor-parallel sizes below and above ``size``, if they exist."""
    below = (n for n in range(size - 1, 0, -1) if mode.axes(n, depth) is not None)
    above = (n for n in range(size + 1, 4 * size + 8 * depth) if mode.axes(n, depth) is not None)
    return [n for n in (next(below, None), next(above, None)) if n is not None]
