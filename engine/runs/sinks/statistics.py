"""statistics.jsonl: one object per step with statistics, {"step": ..., NAME: {"mean": ...}}."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from engine.runs.metrics import JsonLinesLog

if TYPE_CHECKING:
    from engine.runs.metrics import StepMetrics
    from engine.runs.sink import SinkRun

PACKAGE = "json"


def open_sink(run: SinkRun) -> StatisticsLog:
    """Open statistics.jsonl, and delete the lines of steps after the step from which the run
    resumes."""
    return StatisticsLog(JsonLinesLog(run.folder.path / "statistics.jsonl", run.steps_done))


class StatisticsLog:
    """Writes a line for each step that has statistics."""

    view = None

    def __init__(self, log: JsonLinesLog) -> None:
        self._log = log

    def step(self, row: StepMetrics) -> None:
        """Write the statistics of a step, if it has any. NaN and infinity become null."""
        if row.statistics is None:
            return
        self._log.write(
            {
                "step": row.step,
                **{
                    name: {
                        kind: value if math.isfinite(value) else None
                        for kind, value in dataclasses.asdict(found).items()
                    }
                    for name, found in row.statistics.items()
                },
            }
        )

    def close(self) -> None:
        """Close the file."""
        self._log.close()
