"""The times of a whole run, as a table at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from engine.training.step_times import StepTimes

NAMES = {
    "data": "waiting for data",
    "forward_backward": "forward and backward",
    "communication": "exposed communication",
    "optimizer": "optimizer",
    "validation": "validation",
    "other": "logs, checkpoints, other",
}


def mean_over_ranks(times: StepTimes, all_gather: Callable[[str], Sequence[str]]) -> StepTimes:
    """Return the mean of the ranks' ``times``. All ranks call it. ``all_gather`` sends a text to
    all ranks and returns the texts of all of them."""
    texts = all_gather(json.dumps(times.seconds()))
    total = sum((StepTimes(**json.loads(text)) for text in texts), StepTimes())
    return StepTimes(**{part: spent / len(texts) for part, spent in total.seconds().items()})


def time_table(times: StepTimes, steps: int) -> Iterator[str]:
    """Yield the lines of the table: the share of the time of each part, and the part's time per
    step. Without steps there are no lines."""
    if steps == 0 or times.total == 0:
        return
    title = "time"
    for part, spent in times.seconds().items():
        per_step = f"{1000 * spent / steps:,.1f} ms per step"
        yield f"{title:<11} {NAMES[part]:<24} {spent / times.total:>6.1%} {per_step:>22}"
        title = ""
