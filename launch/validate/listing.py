"""Several configs, a line each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.formatting import format_bytes, plural
from launch.validate.inspection import EstimatedPlan, Inspection

WIDE = 100  # columns of a terminal


def print_listing(inspections: Sequence[Inspection], console: Console) -> None:
    """Verdict, GPUs, layout and what the fullest GPU takes, a line each: as long as it needs to be
    where nobody is looking."""
    limits = {one.case.gpu_memory for one in inspections if one.case}
    limit = limits.pop() if len(limits) == 1 else None
    grid = _grid(inspections, limit, gap=2 if console.width >= WIDE else 1)
    if not console.is_terminal:
        endless = console.options.update(max_width=10_000)
        console.width = max(console.width, console.measure(grid, options=endless).maximum)
    console.print(grid)


def _grid(inspections: Sequence[Inspection], limit: int | None, gap: int) -> Table:
    folder = _folder([one.source for one in inspections])
    grid = Table(box=None, padding=(0, gap, 0, 0), header_style="dim")
    for name in (f"{folder}/" if folder else "config", ""):
        grid.add_column(name, no_wrap=True)
    grid.add_column("GPUs", justify="right", no_wrap=True)
    grid.add_column("layout", no_wrap=True)
    for name in ["of a GPU"] + ([] if limit is None else [f"of {format_bytes(limit)}"]):
        grid.add_column(name, justify="right", no_wrap=True)
    for one in inspections:
        name = os.path.relpath(one.source, folder) if folder else one.source
        grid.add_row(Text(name), _verdict(one), *(_row_cells(one.case) if one.case else ()))
    return grid


def _row_cells(case: EstimatedPlan) -> list[Text]:
    layout, found = case.plan.layout, case.estimate
    ways = {
        f"{layout.mode.name} {layout.tensor}": layout.tensor,
        f"pipeline {layout.pipeline}": layout.pipeline,
        f"data {layout.data}": layout.data,
    }
    zero = case.plan.settings.zero.stage
    parts = [parts for parts, size in ways.items() if size > 1] + [f"ZeRO {zero}"] * (zero > 0)
    taken = found.fullest.memory.total
    cells = [f"{layout.gpus:,}", " x ".join(parts) or "serial", format_bytes(taken)]
    if case.gpu_memory is not None:
        cells.append(f"{taken / case.gpu_memory:.0%}")
    return [Text(cell) for cell in cells]


def _verdict(one: Inspection) -> Text:
    if one.problems:
        return Text(plural(len(one.problems), "problem"), style="red")
    assert one.case is not None
    if one.case.plan.warnings:
        return Text(plural(len(one.case.plan.warnings), "warning"), style="yellow")
    return Text("ok", style="green")


def _folder(sources: Sequence[str]) -> str:
    """The folder that all are in, as they name it; empty where that says little."""
    parents = {str(Path(source).parent) for source in sources}
    return parents.pop() if len(parents) == 1 else ""
