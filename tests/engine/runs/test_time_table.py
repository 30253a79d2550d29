"""The table of the times of a run."""

from __future__ import annotations

import re

import pytest

from engine.runs.time_table import mean_over_ranks, time_table
from engine.training.step_times import StepTimes


def test_the_table_has_the_mean_of_the_ranks_and_shares_that_add_up():
    here = StepTimes(data=1.0, forward_backward=5.0, communication=0.0, optimizer=1.0, other=1.0)
    there = StepTimes(data=0.0, forward_backward=3.0, communication=4.0, optimizer=1.0)
    sent: list[str] = []

    def gather(text: str) -> list[str]:
        sent.append(text)
        return sent

    mean_over_ranks(there, gather)
    mean = mean_over_ranks(here, gather)
    assert mean.total == 8.0
    lines = list(time_table(mean, 4))
    cells = [re.split(r" {2,}", line.removeprefix("time").strip()) for line in lines]
    assert lines[0].startswith("time ")
    assert cells == [
        ["waiting for data", "6.2%", "125.0 ms per step"],
        ["forward and backward", "50.0%", "1,000.0 ms per step"],
        ["exposed communication", "25.0%", "500.0 ms per step"],
        ["optimizer", "12.5%", "250.0 ms per step"],
        ["validation", "0.0%", "0.0 ms per step"],
        ["logs, checkpoints, other", "6.2%", "125.0 ms per step"],
    ]


@pytest.mark.parametrize("steps", [0, 3])
def test_a_run_without_steps_has_no_table(steps):
    assert list(time_table(StepTimes(), steps)) == []
