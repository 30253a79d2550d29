"""The report of one config: summary, memory, messages, modes, checks, alternatives, remarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import ceil

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.estimate.result import Estimate, StageEstimate
from engine.formatting import byte_unit, format_bytes, format_layers, plural
from engine.plan import Plan
from engine.runs.plan_summary import plan_summary, summary_table
from launch.validate.inspection import EstimatedPlan

# Columns of the memory table: title, field of Memory.
PARTS = (
    ("weights", "parameters"),
    ("grads", "gradients"),
    ("optim.", "optimizer"),
    ("activ.", "activations"),
    ("logits", "logits"),
    ("buffers", "buffers"),
    ("total", "total"),
)
OFF_DEVICE = (("host", "host"), ("NVMe", "nvme"))
MOST_ROWS = 12
WIDE = 100  # columns of a wide terminal
NEARLY = 0.9  # share of a GPU's memory from which on it is shown in yellow


def print_report(case: EstimatedPlan, console: Console) -> None:
    """Print the report without the remarks."""
    plan, predicted = case.plan, case.estimate
    console.print(summary_table({**plan_summary(plan), **_estimate_lines(plan, predicted)}))
    console.print()
    console.print(memory_table(case, console))
    if predicted.traffic:
        console.print()
        console.print(traffic_table(predicted, console))
    console.print()
    if case.modes:
        console.print(modes_table(case, console))
        console.print()
    if case.checks:
        console.print(checks_table(case, console))
        console.print()
    if case.alternatives or case.nearest:
        console.print(alternatives_table(case, console))
        console.print()


def print_remarks(plan: Plan, console: Console) -> None:
    """Print warnings and notes: wrapped on a terminal, otherwise one line each."""
    for kind, style, lines in (("warning", "yellow", plan.warnings), ("note", "cyan", plan.notes)):
        for line in lines:
            text = Text(f"{kind}: ", style=style).append(line, style="default")
            console.print(text, soft_wrap=not console.is_terminal, highlight=False)


def _estimate_lines(plan: Plan, predicted: Estimate) -> dict[str, str]:
    """Return the lines of the summary that the estimate provides."""
    lines = {"parameters": f"{predicted.parameters:,}"}
    if plan.layout.gpus > 1:
        lines["parameters"] += f", at most {predicted.parameters_per_rank:,} on a GPU"
    if plan.layout.pipeline > 1:
        lines["bubble"] = f"{predicted.bubble:.1%} of a step ({plan.settings.schedule})"
    order = plan.row_order
    if order.group > 1:
        lines["attention"] = (
            f"samples on {order.group} GPUs, which gather keys and values; the GPU with the most "
            f"work leaves the others idle for {order.idle:.1%} of it"
        )
    return lines


def memory_table(case: EstimatedPlan, console: Console) -> Table:
    """Return a table with one row per stage. Consecutive stages of equal memory share a row; of
    many rows only some are shown."""
    stages, gpu = case.estimate.stages, case.gpu_memory
    name, size = byte_unit(max(stage.memory.total for stage in stages))
    parts = [
        (head, part)
        for head, part in (*PARTS, *OFF_DEVICE)
        if any(getattr(stage.memory, part) for stage in stages)
    ]
    heads = [head for head, _ in parts]
    grid = _grid(f"memory of a GPU, {name}", ["stage", "layers"], heads, console)
    grid.columns[1].no_wrap = False  # chunks make it long
    grid.columns[1].min_width = len("layers")
    bar_width = 24 if console.width >= WIDE else 8 if len(parts) <= len(PARTS) else 0
    if gpu is not None:
        grid.add_column(f"of {format_bytes(gpu)}", no_wrap=True)
    for row in _some([list(same) for _, same in groupby(stages, key=lambda one: one.memory)]):
        if row is None:
            grid.add_row("...")
            continue
        memory = row[0].memory
        sizes = [_three_digits(getattr(memory, part) / size) for _, part in parts]
        share = [] if gpu is None else [_share(memory.total / gpu, bar_width, console)]
        grid.add_row(_numbers(row), _layers(row), *sizes, *share)
    return grid


def traffic_table(predicted: Estimate, console: Console) -> Table:
    """Return a table of the messages that the busiest GPU sends in a step."""
    grid = _grid("sent by a GPU in a step", ["axis", "collective"], ["calls", "bytes"], console)
    for sent in predicted.traffic:
        grid.add_row(sent.axis, sent.collective, f"{sent.calls:,}", format_bytes(sent.bytes))
    return grid


def alternatives_table(case: EstimatedPlan, console: Console) -> Table:
    """Return a table of the changes that fit, or of the nearest misses, with their memory."""
    title = "what would fit" if case.alternatives else "nothing fits; nearest"
    others = case.alternatives or case.nearest
    samples = {other.plan.global_batch for other in others} != {case.plan.global_batch}
    on_host = any(other.estimate.fullest.memory.host for other in others)
    numbers = ["of a GPU", "GPUs", *(["samples"] * samples), *(["host"] * on_host)]
    grid = _grid(title, ["with"], numbers, console)
    for other in others:
        memory = other.estimate.fullest.memory
        cells = [format_bytes(memory.total), f"{other.plan.layout.gpus:,}"]
        cells += [f"{other.plan.global_batch:,}"] * samples
        cells += [format_bytes(memory.host)] * on_host
        grid.add_row(Text(other.command_words(case.plan)), *cells)
    grid.columns[0].no_wrap = False
    return grid


def modes_table(case: EstimatedPlan, console: Console) -> Table:
    """Return a table of all legal modes on these GPUs; the plan's own mode is bold."""
    limit = case.gpu_memory
    share = [] if limit is None else [f"of {format_bytes(limit)}"]
    batch = {row.plan.global_batch for row in case.modes} != {case.plan.global_batch}
    numbers = ["data", *(["samples"] * batch), "of a GPU", *share, "sent", "padding"]
    title = f"modes on {plural(case.plan.layout.gpus, 'GPU')}, a step"
    grid = _grid(title, ["mode"], numbers, console)
    grid.add_column("with")
    for row in case.modes:
        layout = row.plan.layout
        depth = f" depth {layout.depth}" if layout.mode.uses_depth else ""
        size = f" {layout.tensor}" if layout.tensor > 1 else ""
        cells = [f"{layout.mode.name}{size}{depth}", f"{layout.data}"]
        cells += [f"{row.plan.global_batch:,}"] * batch + [format_bytes(row.memory)]
        cells += [] if limit is None else [f"{row.memory / limit:.0%}"]
        cells += [format_bytes(row.sent), f"{row.padding:.0%}"]
        grid.add_row(
            *cells,
            Text(" ".join(row.overrides) or "as it is"),
            style="" if row.overrides else "bold",
        )
    return grid


def checks_table(case: EstimatedPlan, console: Console) -> Table:
    """Return a table of the checks of this machine and their findings."""
    grid = _grid("this machine", ["about", "finding"], [], console)
    grid.show_header = False
    grid.columns[1].no_wrap = False
    for check in case.checks:
        grid.add_row(check.about, Text(check.finding, style="red" if check.problems else ""))
    return grid


def _grid(title: str, names: Sequence[str], numbers: Sequence[str], console: Console) -> Table:
    grid = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 2 if console.width >= WIDE else 1, 0, 0),
    )
    for name in names:
        grid.add_column(name, no_wrap=True)
    for number in numbers:
        grid.add_column(number, justify="right", no_wrap=True)
    return grid


def _share(ratio: float, width: int, console: Console) -> Text:
    """Format ``ratio`` as a percentage (rounded up above 100%) and a bar of ``width``
    characters."""
    style = "red" if ratio > 1 else "yellow" if ratio > NEARLY else "green"
    percent = ceil(100 * ratio) if ratio > 1 else round(100 * ratio)
    done = min(width, ceil(ratio * width))
    mark = "#" if console.options.ascii_only else "━"
    text = Text(f"{percent:3}% ", style=style).append(mark * done)
    return text.append(mark * (width - done), style="dim white") if console.is_terminal else text


def _some(rows: Sequence[list[StageEstimate]]) -> Iterator[list[StageEstimate] | None]:
    """Yield all rows if they are few, otherwise the first, the last and the largest; None stands
    for omitted rows."""
    last = len(rows) - 1
    largest = max(range(len(rows)), key=lambda row: rows[row][0].memory.total)
    shown = {
        row
        for row in range(len(rows))
        if last < MOST_ROWS or row == largest or min(row, last - row) < MOST_ROWS // 2 - 1
    }
    for row, stages in enumerate(rows):
        if row in shown:
            yield stages
        elif row - 1 in shown:
            yield None


def _numbers(stages: Sequence[StageEstimate]) -> str:
    first, last = stages[0].stage, stages[-1].stage
    return f"{first}" if first == last else f"{first}-{last}"


def _layers(stages: Sequence[StageEstimate]) -> str:
    if len(stages) == 1:
        return format_layers(stages[0].layers)
    if len(stages[0].layers) == 1:
        return format_layers([range(stages[0].layers[0].start, stages[-1].layers[0].stop)])
    return f"{sum(map(len, stages[0].layers))} each"


def _three_digits(number: float) -> str:
    """Format a number of a column to three digits: '0.49', '12.0', '1,020'; '0' for none."""
    if number == 0 or abs(number) >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 9.995 else f"{number:.2f}"
