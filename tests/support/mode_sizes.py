"""Sizes at which the modes are tested. They come from the registry, so that a new mode is tested
without further code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from models.parallel.registry import modes


class ModeSize(NamedTuple):
    """MODE, TENSOR_PARALLEL, DEPTH."""

    mode: str
    tensor: int
    depth: int

    def __str__(self) -> str:
        depth = f"d{self.depth}" if modes()[self.mode].uses_depth else ""
        return f"{self.mode}x{self.tensor}{depth}"


def mode_sizes(largest: int) -> Iterator[ModeSize]:
    """Return every legal size of every mode up to ``largest`` ranks."""
    for name, mode in modes().items():
        for depth in range(1, largest + 1 if mode.uses_depth else 2):
            for tensor in range(1, largest + 1):
                if mode.axes(tensor, depth) is not None:
                    yield ModeSize(name, tensor, depth)


def full_mode_sizes(largest: int = 8) -> list[ModeSize]:
    """Return the smallest size of each mode in which no axis has size 1."""
    smallest: dict[str, ModeSize] = {}
    for cut in sorted(mode_sizes(largest), key=lambda cut: cut.tensor):
        axes = modes()[cut.mode].axes(cut.tensor, cut.depth)
        if axes is not None and 1 not in axes.values():
            smallest.setdefault(cut.mode, cut)
    assert smallest.keys() == modes().keys()
    return list(smallest.values())
