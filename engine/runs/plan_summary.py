"""A summary of a plan: model, layout, batch and work of a step, one line each. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from engine.estimate.flops import flops_per_token
from engine.formatting import format_count, plural

if TYPE_CHECKING:
    from engine.plan import Plan


def plan_summary(plan: Plan) -> dict[str, str]:
    """Summarize a plan; return name -> text of each line, in the order of the lines."""
    settings, layout = plan.settings, plan.layout
    model = settings.model
    flops = flops_per_token(model, settings.seq_len)
    axes = " ".join(f"{axis}={size}" for axis, size in layout.tensor_axes.items())
    ranks, batch = plural(layout.gpus, "process", "es"), plural(plan.global_batch, "sample")
    padding = plan.row_order.rows - plan.micro_batch * settings.seq_len
    return {
        "config": settings.source,
        "model": f"{model.n_layer} layers, {model.n_head} heads of {model.head_dim}, "
        f"width {model.n_embd}, vocabulary {model.vocab_size:,}",
        "layout": f"tensor {layout.tensor} ({layout.mode.name}{axes and ': ' + axes}) x "
        f"pipeline {layout.pipeline} x data {layout.data} = {ranks}",
        "batch": f"{plural(settings.batch_size, 'sample')} x data {layout.data} x accumulation "
        f"{settings.gradient_accumulation} = {batch} of {settings.seq_len} "
        f"tokens per step, in micro-batches of {plan.micro_batch}"
        + (f" padded by {plural(padding, 'row')}" if padding else ""),
        "work": f"{plan.tokens_per_step:,} tokens and "
        f"{format_count(flops * plan.tokens_per_step)}FLOPs per "
        f"step, {format_count(flops)}FLOPs per token; {settings.precision}",
    }


def plan_remarks(plan: Plan) -> list[str]:
    """Return a line per warning and note of the plan."""
    warnings = [f"warning: {text}" for text in plan.warnings]
    return warnings + [f"note: {text}" for text in plan.notes]


def summary_table(lines: Mapping[str, str]) -> Table:
    """Return the lines as a table for rich: names on the left, texts wrapped on the right."""
    grid = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in lines.items():
        grid.add_row(name, Text(text))  # not markup, which a path may resemble
    return grid
