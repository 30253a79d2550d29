"""What a person sees: plain lines in a file, a bar on a terminal, times and advice by the clock."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from engine.metrics import Row
from engine.terminal import Pace, Terminal, duration, line, size


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def row(step: int, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "step": step,
        "loss": 2.34567,
        "lr": 3e-4,
        "grad_norm": 0.8345,
        "tokens": 512 * step,
        "tokens_per_second": 12345.6,
        "memory_by_rank": (400 * 2**20, 512 * 2**20),
    }
    return Row(**values | changes)


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=120), file


def test_a_line_has_all_of_it():
    assert line(row(7), 2000, "1:02") == (
        "step     7/2,000 | loss 2.3457 | lr 3.00e-04 | grad norm 0.835 | 12,346 tokens/s | "
        "512 MiB | ETA 1:02"
    )
    full = line(row(7, val_loss=2.5, mfu=0.412), 2000, "1:02")
    assert " | val loss 2.5000 | " in full
    assert " | MFU 41.2% | " in full
    fp16 = line(row(7, loss_scale=2.0**15, skipped=2), 2000, "1:02")
    assert " | loss scale 32768 | 2 skipped | " in fp16
    assert "skipped" not in line(row(7, loss_scale=2.0**16, skipped=0), 2000, "1:02")


def test_into_a_file_go_plain_lines_every_so_many_steps_and_the_last():
    out, file = console(terminal=False)
    terminal = Terminal(out, Pace(total_steps=10, clock=Clock()), every=4)
    for step in range(1, 11):
        terminal.step(row(step, val_loss=2.0 if step == 5 else None))
    terminal.close()
    lines = file.getvalue().splitlines()
    assert [text.split("|")[0].split()[1] for text in lines] == ["4/10", "5/10", "8/10", "10/10"]
    assert "\x1b" not in file.getvalue()


def test_a_long_line_is_not_broken():
    file = io.StringIO()
    terminal = Terminal(Console(file=file, width=20), Pace(total_steps=10), every=1)
    terminal.step(row(1))
    terminal.say("[bold]" + "x" * 50)
    assert len(file.getvalue().splitlines()) == 2
    assert "[bold]xxx" in file.getvalue()


def test_on_a_terminal_there_is_a_bar_below_the_lines_and_it_goes_away():
    out, file = console(terminal=True)
    terminal = Terminal(out, Pace(total_steps=10), every=1)
    for step in range(1, 11):
        terminal.step(row(step))
    terminal.close()
    text = file.getvalue()
    assert "━" in text
    assert "10/10" in text
    assert "\x1b[?25l" in text, "the cursor is hidden while there is a bar"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "and shown again"


def test_time_left_counts_all_but_the_first_step():
    clock = Clock()
    pace = Pace(total_steps=10, clock=clock)
    assert pace.seconds_left is None
    clock.now += 60  # compiling, say
    pace.mark(1)
    assert pace.seconds_left is None
    for step, seconds in ((2, 2.0), (3, 4.0)):  # with a validation
        clock.now += seconds
        pace.mark(step)
    assert pace.seconds_per_step == pytest.approx(3.0)
    assert pace.seconds_left == pytest.approx(21.0)


def test_a_resumed_run_counts_from_where_it_goes_on():
    clock = Clock()
    pace = Pace(total_steps=100, clock=clock)
    for step in (91, 92):
        clock.now += 1.0
        pace.mark(step)
    assert pace.seconds_left == pytest.approx(8.0)


def test_advice_is_asked_once_when_the_pace_is_steady():
    clock = Clock()
    asked: list[tuple[float, int]] = []

    def advise(seconds_per_step: float, steps_left: int) -> str:
        asked.append((seconds_per_step, steps_left))
        return "try less"

    out, file = console(terminal=False)
    terminal = Terminal(out, Pace(total_steps=1000, clock=clock), every=1000, advise=advise)
    clock.now += 500  # the first step warms up
    for step in range(1, 9):
        terminal.step(row(step))
        clock.now += 5
    ((seconds_per_step, steps_left),) = asked
    assert (seconds_per_step, steps_left) == (5.0, 996)
    assert file.getvalue().splitlines() == ["try less"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0:00"), (59.6, "1:00"), (245, "4:05"), (3845, "1:04:05")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_sizes():
    assert size(512 * 2**20) == "512 MiB"
    assert size(9.5 * 2**30) == "9,728 MiB"
    assert size(12.5 * 2**30) == "12.5 GiB"
