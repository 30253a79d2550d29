"""The map of a layout for a terminal: a box per block of GPUs, side by side as far as they fit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, zip_longest

from rich.align import Align
from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from engine.layout import Layout
from launch.validate.map_blocks import GpuBlock, Plane, blocks, title

GAP = 3  # columns between planes
LABEL, RANK = "dim", "bold"


def terminal_map(layout: Layout, layers: Sequence[str], width: int) -> RenderableType:
    """Draw the rank of every GPU in its place.

    layers: the layers of each stage.
    width: columns of the terminal.

    Raises:
        UserError: there are too many GPUs.
    """
    parts: list[RenderableType] = []
    digits = len(str(layout.gpus - 1))
    staged = layout.pipeline > 1
    for data, group in groupby(
        blocks(layout), key=lambda block: block.index.get("data") if staged else None
    ):
        if data is not None and layout.data > 1:
            parts.append(Text(f"data {data}", style="bold"))
        panels = [
            _panel(block, digits, layers[block.stage], title(block, layout)) for block in group
        ]
        parts.append(Padding(_arrange(panels, width), (0, 0, 1, 0), expand=False))
    return Group(*parts)


def _panel(block: GpuBlock, digits: int, layers: str, name: str) -> Panel:
    planes = [_plane(plane, digits) for plane in block.planes]
    content = Text("\n").join(
        Text(" " * GAP).join(part for part in parts if part is not None)
        for parts in zip_longest(*planes)
    )
    below = f"layers {layers}"
    widest = max(line.cell_len for line in content.split())
    return Panel(
        Align.center(content),
        box=ROUNDED,
        border_style="cyan",
        title=Text(name, style="cyan"),
        subtitle=Text(below, style="dim"),
        padding=(0, 1),
        width=max(widest, len(name) + 2, len(below) + 2) + 4,
    )


def _plane(plane: Plane, digits: int) -> list[Text]:
    """Return lines of equal width: the names of the columns, then one line per row of ranks."""
    cell = max(digits, *map(len, plane.columns)) + 2
    corner = " ".join(f"{axis}{index}" for axis, index in plane.index.items())
    margin = max(len(corner), *map(len, plane.rows))
    head = Text().append(f"{corner:<{margin}}", style=LABEL)
    head.append("".join(f"{name:>{cell}}" for name in plane.columns), style=LABEL)
    lines = [head]
    for name, ranks in zip(plane.rows, plane.ranks, strict=True):
        line = Text().append(f"{name:>{margin}}", style=LABEL)
        for rank in ranks:
            line.append(f"{rank:>{cell}}", style=RANK)
        line.append(" " * (head.cell_len - line.cell_len))
        lines.append(line)
    return lines


def _arrange(panels: Sequence[Panel], width: int) -> Table:
    """Arrange panels in rows, with columns as wide as the widest panel."""
    widest = max(panel.width or 0 for panel in panels)
    across = max(1, (width + 1) // (widest + 1))
    grid = Table.grid(padding=(0, 1, 0, 0))
    for start in range(0, len(panels), across):
        grid.add_row(*panels[start : start + across])
    return grid
