"""SVG drawings of a block of GPUs: a grid of tiles, or the stacked planes of a cube."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from xml.etree.ElementTree import Element, SubElement

from engine.layout import Layout
from launch.validate.map_blocks import GpuBlock, Plane
from launch.validate.svg import (
    GREY,
    LINE,
    Point,
    group,
    label,
    line,
    mix,
    polygon,
    rect,
    text_width,
)

DARK, WHITE = "#0b1020", "#ffffff"
SMALL = 11.0  # font size of the coordinates' names
FEW = 32  # up to this many GPUs tiles are drawn large


class Body(Protocol):
    """The drawing inside a card."""

    width: float
    height: float

    def draw(self, parent: Element, x: float, y: float, layout: Layout, colour: str) -> None:
        """Draw all GPUs of a block; the upper left corner is at (x, y)."""


def body(block: GpuBlock, gpus: int) -> Body:
    """Choose the drawing of a block; tiles are larger if the layout has few ``gpus``."""
    if len(block.planes) == 1:
        return TileGrid(block.planes[0], gpus)
    return Cube(block.planes)


class TileGrid:
    """Rows and columns of tiles, named at their edges."""

    gap = 6.0

    def __init__(self, plane: Plane, gpus: int) -> None:
        self._plane = plane
        self._number, high = (18.0, 48.0) if gpus <= FEW else (14.0, 32.0)
        longest = max(*map(len, plane.columns), 0)
        texts = text_width(str(gpus), self._number) + 18, text_width("0" * longest, SMALL)
        self._tile = max(1.25 * high, *texts), high
        self._margin = max(text_width(name, SMALL) for name in plane.rows)
        self._margin += 8 if self._margin else 0
        self._head = SMALL + 8
        self.width = self._margin + len(plane.columns) * (self._tile[0] + self.gap) - self.gap
        self.height = self._head + len(plane.rows) * (self._tile[1] + self.gap) - self.gap

    def draw(self, parent: Element, x: float, y: float, layout: Layout, colour: str) -> None:
        wide, high = self._tile
        left, top = x + self._margin, y + self._head
        for column, name in enumerate(self._plane.columns):
            middle = left + column * (wide + self.gap) + wide / 2
            label(parent, middle, y + SMALL / 2, name, size=SMALL, anchor="middle", fill=GREY)
        for row, name in enumerate(self._plane.rows):
            above = top + row * (high + self.gap)
            label(parent, left - 8, above + high / 2, name, size=SMALL, anchor="end", fill=GREY)
            for column, rank in enumerate(self._plane.ranks[row]):
                left_edge = left + column * (wide + self.gap)
                tile = _gpu(parent, layout, rank)
                rect(tile, left_edge, above, wide, high, radius=6, fill=colour)
                _rank(tile, left_edge + wide / 2, above + high / 2, rank, self._number)


@dataclass(frozen=True)
class IsometricGrid:
    """An isometric plane: columns run down to the right, rows down to the left."""

    half_width: float
    half_height: float
    thickness: float

    def at(self, row: float, column: float) -> Point:
        return (column - row) * self.half_width, (row + column) * self.half_height


class Cube:
    """Planes of slabs in isometric view, the first one on top, with joined corners."""

    fill = 0.84  # share of its cell that a slab covers
    air = 10.0  # distance between planes

    def __init__(self, planes: Sequence[Plane]) -> None:
        self._planes = planes
        self._rows, self._columns = len(planes[0].rows), len(planes[0].columns)
        size = {2: 64.0, 3: 52.0}.get(max(self._rows, self._columns), 44.0)
        self._isometric = slope = IsometricGrid(size, 0.56 * size, 0.5 * size)
        self._side = 28.0  # beside the planes, for names
        self._top = 6.0
        self._left = self._rows * slope.half_width + self._side
        self._step = (self._rows + self._columns) * slope.half_height + slope.thickness + self.air
        self.width = self._left + self._columns * slope.half_width + self._side
        self.height = self._top + len(planes) * self._step

    def draw(self, parent: Element, x: float, y: float, layout: Layout, colour: str) -> None:
        origin = x + self._left, y + self._top
        self._edges(parent, origin)
        for number, plane in enumerate(self._planes):
            top = origin[0], origin[1] + number * self._step
            self._names(parent, plane, top)
            for row, ranks in enumerate(plane.ranks):
                for column, rank in enumerate(ranks):
                    self._slab(_gpu(parent, layout, rank), top, row, column, rank, colour)

    def _edges(self, parent: Element, origin: Point) -> None:
        """Draw dashed verticals that join the outer corners of the planes to a cube."""
        edge, down = self.fill * self._isometric.half_width, self._isometric.thickness
        corners = (self._rows - 0.5, 0.5, -edge), (0.5, self._columns - 0.5, edge)
        for number in range(len(self._planes) - 1):
            for row, column, aside in corners:
                dx, dy = self._isometric.at(row, column)
                x, y = origin[0] + dx + aside, origin[1] + dy + number * self._step
                style = {"stroke": mix(LINE, GREY, 0.6), "stroke_dasharray": "3 4"}
                line(parent, (x, y + down), (x, y + self._step), **style)

    def _names(self, parent: Element, plane: Plane, top: Point) -> None:
        away = -0.42
        for row, name in enumerate(plane.rows):
            dx, dy = self._isometric.at(row + 0.5, away)
            label(parent, top[0] + dx, top[1] + dy, name, size=SMALL, anchor="end", fill=GREY)
        for column, name in enumerate(plane.columns):
            dx, dy = self._isometric.at(away, column + 0.5)
            label(parent, top[0] + dx, top[1] + dy, name, size=SMALL, fill=GREY)
        name = " ".join(f"{axis}{index}" for axis, index in plane.index.items())
        left = top[0] - self._left + 4
        below = top[1] + self._step - self.air - self._isometric.thickness
        label(parent, left, below, name, size=1.3 * SMALL, fill=GREY, bold=True)

    def _slab(
        self, tile: Element, top: Point, row: int, column: int, rank: int, colour: str
    ) -> None:
        dx, dy = self._isometric.at(row + 0.5, column + 0.5)
        x, y = top[0] + dx, top[1] + dy
        a, b = self.fill * self._isometric.half_width, self.fill * self._isometric.half_height
        down = self._isometric.thickness
        left, right, front, back = (x - a, y), (x + a, y), (x, y + b), (x, y - b)
        polygon(
            tile,
            [left, front, (x, y + b + down), (x - a, y + down)],
            fill=mix(colour, DARK, 0.28),
        )
        polygon(
            tile,
            [right, front, (x, y + b + down), (x + a, y + down)],
            fill=mix(colour, DARK, 0.48),
        )
        polygon(tile, [left, back, right, front], fill=colour)
        _rank(tile, x, y, rank, 18)


def _gpu(parent: Element, layout: Layout, rank: int) -> Element:
    """Create the group of a GPU's shapes, with its coordinates as a title and as attributes."""
    coordinates = layout.coordinates(rank)
    data = {f"data-{axis}": str(index) for axis, index in coordinates.items()}
    tile = group(parent, id=f"gpu-{rank}", **data)
    description = ", ".join(f"{axis} {index}" for axis, index in coordinates.items())
    SubElement(tile, "title").text = f"GPU {rank}: {description}"
    return tile


def _rank(tile: Element, x: float, y: float, rank: int, size: float) -> None:
    label(tile, x, y, str(rank), size=size, anchor="middle", fill=WHITE, bold=True)
