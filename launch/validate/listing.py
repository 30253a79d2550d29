"""The report of several configs, one line per config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.formatting import format_bytes, plural
from launch.validate.inspection import EstimatedPlan, Inspection
from launch.validate.report import WIDE


def print_listing(inspections: Sequence[Inspection], console: Console) -> None:
    """Print the verdict, GPUs, layout and memory of each config. Lines are as long as needed if the
    output is not a terminal."""
    limits = {each.case.gpu_memory for each in inspections if each.case}
    limit = limits.pop() if len(limits) == 1 else None
    grid = _grid(inspections, limit, gap=2 if console.width >= WIDE else 1)
    if not console.is_terminal:
        unlimited = console.options.update(max_width=10_000)
        console.width = max(console.width, console.measure(grid, options=unlimited).maximum)
    console.print(grid)


def _grid(inspections: Sequence[Inspection], limit: int | None, gap: int) -> Table:
    folder = _folder([inspection.source for inspection in inspections])
    grid = Table(box=None, padding=(0, gap, 0, 0), header_style="dim")
    for name in (f"{folder}/" if folder else "config", ""):
        grid.add_column(name, no_wrap=True)
    grid.add_column("GPUs", justify="right", no_wrap=True)
    grid.add_column("layout", no_wrap=True)
    for name in ["of a GPU"] + ([] if limit is None else [f"of {format_bytes(limit)}"]):
        grid.add_column(name, justify="right", no_wrap=True)
    for inspection in inspections:
        source, case = inspection.source, inspection.case
        name = os.path.relpath(source, folder) if folder else source
        grid.add_row(Text(name), _verdict(inspection), *(_row_cells(case) if case else ()))
    return grid


def _row_cells(case: EstimatedPlan) -> list[Text]:
    layout = case.plan.layout
    sizes = {
        f"{layout.mode.name} {layout.tensor}": layout.tensor,
        f"pipeline {layout.pipeline}": layout.pipeline,
        f"data {layout.data}": layout.data,
    }
    zero = case.plan.settings.zero.stage
    parts = [part for part, size in sizes.items() if size > 1] + [f"ZeRO {zero}"] * (zero > 0)
    memory = case.estimate.fullest.memory.total
    cells = [f"{layout.gpus:,}", " x ".join(parts) or "serial", format_bytes(memory)]
    if case.gpu_memory is not None:
        cells.append(f"{memory / case.gpu_memory:.0%}")
    return [Text(cell) for cell in cells]


def _verdict(inspection: Inspection) -> Text:
    if inspection.problems:
        return Text(plural(len(inspection.problems), "problem"), style="red")
    assert inspection.case is not None
    if inspection.case.plan.warnings:
        return Text(plural(len(inspection.case.plan.warnings), "warning"), style="yellow")
    return Text("ok", style="green")


def _folder(sources: Sequence[str]) -> str:
    """Return the parent folder that all sources share, empty if they differ."""
    parents = {str(Path(source).parent) for source in sources}
    return parents.pop() if len(parents) == 1 else ""
