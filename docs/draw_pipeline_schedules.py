"""Draws the timetable of every pipeline schedule into the docstring of its function.

Run it from the repository's root after a schedule was added or changed:
python docs/draw_pipeline_schedules.py
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from engine.pipeline.schedule import (
    SCHEDULES,
    Action,
    Costs,
    PipelineShape,
    ScheduleSimulator,
    actions,
    simulate,
)

MODULE = Path(inspect.getfile(PipelineShape))
SHAPES = {"interleaved": PipelineShape(ranks=2, micro_batches=4, chunks=2)}
SHAPE = PipelineShape(ranks=4, micro_batches=4)
LETTERS = {"forward": "F", "backward": "B", "backward_input": "I", "backward_weight": "W"}
"""As in torch.distributed.pipelining."""
TITLE = "Timetable for "
IDLE = " ."


def timetable(name: str) -> str:
    """Simulate a schedule and draw a line per rank. A column is one unit of time."""
    shape = SHAPES.get(name, SHAPE)
    costs = [Costs()] * (shape.ranks * shape.chunks)
    orders = [actions(name, shape, rank) for rank in range(shape.ranks)]
    simulator, rows = ScheduleSimulator(shape, costs), [list[str]() for _ in orders]
    for rank, action in simulate(orders, simulator):
        units = int(costs[0].of(action.kind))
        start = int(simulator.free[rank]) - units
        rows[rank] += [IDLE] * (start - len(rows[rank])) + [_cell(action)] * units
    length = max(map(len, rows))
    (idle,) = {length - int(busy) for busy in simulator.busy}
    lines = [
        " ".join([f"    rank {rank} ", *row, *[IDLE] * (length - len(row))])
        for rank, row in enumerate(rows)
    ]
    whole = any(action.kind == "backward" for action in orders[0])
    return "\n".join([*_title(shape, idle, length, whole=whole), "", *lines])


def _cell(action: Action) -> str:
    """Format the kind and the micro-batch of an action, in lower case for the second chunk of a
    rank."""
    letter = LETTERS[action.kind]
    return f"{letter.lower() if action.chunk else letter}{action.micro_batch}"


def _title(shape: PipelineShape, idle: int, length: int, *, whole: bool) -> list[str]:
    """Explain the letters. ``whole``: the halves of a backward pass are one action."""
    chunks = f", {shape.chunks} chunks (the second in lower case)" if shape.chunks > 1 else ""
    head = (
        f"{TITLE}p = {shape.ranks}, m = {shape.micro_batches}{chunks}; a column is a unit of time."
    )
    if whole:
        letters = "F0: forward of micro-batch 0, 1 unit. B0: backward, 2 units."
    else:
        letters = (
            "F0: forward of micro-batch 0. I0, W0: gradients of input and weights. 1 unit each."
        )
    return [head, letters, f"Every rank is idle ({IDLE.strip()}) in {idle} of {length} units."]


def main() -> None:
    """Rewrite the end of each docstring, from the title of its timetable on."""
    lines = MODULE.read_text(encoding="utf-8").splitlines()
    tree = ast.parse("\n".join(lines))
    names = {function.__name__: name for name, function in SCHEDULES.items()}
    for node in reversed(tree.body):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            text = ast.get_docstring(node)
            assert text is not None, f"{node.name} has no docstring"
            prose = text.partition(TITLE)[0].rstrip()
            drawn = f'"""{prose}\n\n{timetable(names[node.name])}\n"""'
            docstring = node.body[0]
            lines[docstring.lineno - 1 : docstring.end_lineno] = [
                f"    {line}" if line else "" for line in drawn.splitlines()
            ]
    MODULE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
