"""Drawing of docs/sharding.svg: the shards of a matmul's tensors on each rank, in every mode.

After a change of the modes, run it in the root of the repository: python docs/draw_sharding.py
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path
from xml.etree.ElementTree import Element

from launch.validate.svg import GREY, canvas, label, mix, ramp, rect, render
from models.parallel.mode import Mode
from models.parallel.registry import modes
from models.parallel.shard import shard_of

PICTURE = Path(__file__).with_name("sharding.svg")
SIZES = {"1d": (4, 1), "2d": (4, 1), "2.5d": (8, 2), "3d": (8, 1)}
"""Tensor-parallel ranks and DEPTH of a mode's drawing; default: the smallest size of at least 4."""
SIDE, GAP, MARGIN, TITLE = 150, 36, 24, 46
UNIT = 8
"""Rows and columns of a drawn matrix: a multiple of the axes of all drawn sizes."""


def picture() -> str:
    """Draw one column per mode and one row per tensor, and return the text of the SVG file."""
    drawn = [mode for mode in modes().values() if mode.name != "serial"]
    width = 2 * MARGIN + len(drawn) * (SIDE + GAP) - GAP + 70
    height = TITLE + 3 * (SIDE + GAP) + MARGIN
    root = canvas(
        width,
        height,
        "Sharding of one linear layer in every mode",
        "For each mode, the blocks of x, W and y = x W that each tensor-parallel rank holds.",
    )
    for column, mode in enumerate(drawn):
        x = MARGIN + 70 + column * (SIDE + GAP)
        size, depth = _size(mode)
        axes = mode.axes(size, depth)
        assert axes is not None
        shown = ", ".join(f"{axis}={ranks}" for axis, ranks in axes.items())
        label(root, x, 20, f"{mode.name} x {size}", size=17, bold=True)
        label(root, x, 38, shown, size=12, fill=GREY)
        cuts = (
            ("x", (mode.outer.tokens, mode.outer.hidden)),
            ("W", (mode.up.weight_in, mode.up.weight_out)),
            ("y", (mode.inner.tokens, mode.inner.hidden)),
        )
        for row, (name, cut) in enumerate(cuts):
            y = TITLE + 10 + row * (SIDE + GAP)
            if column == 0:
                _name_row(root, name, y)
            _blocks(root, x, y, cut, axes)
    return render(root)


def _size(mode: Mode) -> tuple[int, int]:
    """Return the number of ranks and the DEPTH of a mode's drawing."""
    if mode.name in SIZES:
        return SIZES[mode.name]
    return next((ranks, 1) for ranks in range(4, 65) if mode.axes(ranks, 1))


def _name_row(root: Element, name: str, y: float) -> None:
    """Label a row with its tensor and its two dimensions."""
    rows, columns = {"x": ("tokens", "features"), "W": ("in", "out")}.get(name, ("tokens", "out"))
    label(root, MARGIN, y + SIDE / 2 - 12, name, size=22, bold=True)
    label(root, MARGIN, y + SIDE / 2 + 10, f"{rows}", size=11, fill=GREY)
    label(root, MARGIN, y + SIDE / 2 + 24, f"x {columns}", size=11, fill=GREY)


def _blocks(
    root: Element, x: float, y: float, cut: Sequence[tuple[str, ...]], axes: dict[str, int]
) -> None:
    """Draw the shards of a matrix, each labelled with its ranks."""
    holders: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for rank, indices in enumerate(product(*map(range, axes.values()))):
        index = dict(zip(axes, indices, strict=True))
        box = shard_of((UNIT, UNIT), tuple(cut), axes, index)
        holders.setdefault((box.offset, box.size), []).append(rank)
    count, scale = prod(axes.values()), SIDE / UNIT
    for ((top, left), (tall, wide)), ranks in holders.items():
        colour = mix(ramp(ranks[0], count), "#ffffff", 0.1)
        place_x, place_y = x + left * scale + 1, y + top * scale + 1
        rect(
            root,
            place_x,
            place_y,
            wide * scale - 2,
            tall * scale - 2,
            radius=3,
            fill=colour,
        )
        label(
            root,
            x + (left + wide / 2) * scale,
            y + (top + tall / 2) * scale,
            " ".join(map(str, ranks)),
            size=13 if len(ranks) < 4 else 10,
            anchor="middle",
            fill="#ffffff",
            bold=True,
        )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
