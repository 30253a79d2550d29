"""The terminal output: plain lines in a file, a bar on a terminal, times and advice."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from rich.console import Console

from engine.formatting import format_duration
from engine.runs.metrics import StepMetrics
from engine.runs.terminal import (
    StepTimer,
    Terminal,
    format_header,
    format_row,
    format_validation,
    print_wrapped,
    round_interval,
)


class FakeClock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def row(step: int, **changes: Any) -> StepMetrics:
    values: dict[str, Any] = {
        "step": step,
        "loss": 2.34567,
        "lr": 3e-4,
        "grad_norm": 0.8345,
        "tokens": 512 * step,
        "tokens_per_second": 12345.6,
        "seconds": 0.0414,
        "memory_by_rank": (400 * 2**20, 512 * 2**20),
    }
    return StepMetrics(**values | changes)


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=120), file


def test_header_row_and_validation_are_aligned():
    assert [
        format_header(row(7), 2000),
        format_row(row(7), 2000, "1:02"),
        format_validation(row(7, val_loss=2.5), 2000),
        format_validation(
            row(7, val_loss=2.5, val_loss_per_byte=0.625, val_loss_per_character=0.75), 2000
        ),
    ] == [
        "                  loss      lr    norm tok/s ms/step   memory      ETA",
        "step    7/2000  2.3457 3.0e-04   0.835 12.3K      41  512 MiB     1:02",
        "step    7/2000  val loss 2.5000  perplexity 12.182",
        "step    7/2000  val loss 2.5000  perplexity 12.182  loss/byte 0.625  loss/char 0.75",
    ]


LONG = {
    "loss": 10.82491,
    "tokens_per_second": 468_123.0,
    "seconds": 123.4567,
    "memory_by_rank": (70 * 2**30,),
    "mfu": 0.4123,
}


@pytest.mark.parametrize("changes", [LONG, {**LONG, "mfu": None}, {}])
@pytest.mark.parametrize(
    "norm", [0.0, 3e-9, 0.0123, 0.8345, 12.345, 999.9994, 1234.5, 1e9, math.inf]
)
def test_rows_fit_80_columns_and_values_are_aligned(norm, changes):
    total, eta = 600_000, format_duration(23 * 3600 + 59 * 60 + 59)
    text = format_row(row(123_456, grad_norm=norm, **changes), total, eta)
    titles = format_header(row(1, **changes), total)
    assert len(text) == len(titles) == 80 - 6 * (changes.get("mfu") is None)
    ends = [found.end() for found in re.finditer(r"\S+", titles)]
    assert all(text[end - 1] != " " and text[end:][:1] in ("", " ") for end in ends)


def test_a_file_gets_plain_rows_at_intervals_first_last_and_validations():
    out, file = console(terminal=False)
    terminal = Terminal(out, StepTimer(total_steps=10, clock=FakeClock()), every=4)
    for step in range(1, 11):
        terminal.step(row(step, val_loss=2.0 if step == 5 else None))
    terminal.close()
    titles, *lines = file.getvalue().splitlines()
    assert titles.split()[0] == "loss"
    shown = [text.split()[1] + " val" * ("val" in text) for text in lines]
    assert [text.replace("/10", "") for text in shown] == ["1", "4", "5", "5 val", "8", "10"]
    assert "\x1b" not in file.getvalue()


@pytest.mark.parametrize(
    ("done", "total"), [(0, 1), (0, 30), (0, 300), (0, 2000), (500, 1700), (0, 600_000)]
)
def test_a_run_prints_about_thirty_rows(done, total):
    out, file = console(terminal=False)
    terminal = Terminal(out, StepTimer(total_steps=total, clock=FakeClock()), steps_done=done)
    every = round_interval(total - done)
    for step in sorted({done + 1, *range(done + every, total + 1, every), total}):
        terminal.step(row(step))
    rows = file.getvalue().count("step ")
    assert min(10, total - done) <= rows <= 33


def test_a_long_line_is_wrapped_between_words_on_a_terminal_only():
    text = (
        "warning: [bold]" + "words that go on " * 10 + "/a/path/that-is/longer/than/thirty/columns"
    )
    file, watched = io.StringIO(), io.StringIO()
    print_wrapped(Console(file=file, width=30), text)
    assert file.getvalue() == text + "\n"
    print_wrapped(Console(file=watched, width=30, force_terminal=True), text)
    lines = watched.getvalue().splitlines()
    assert " ".join(part.strip() for part in lines) == text
    assert len(lines) > 5
    assert all(len(part) <= 30 for part in lines[:-1])


def test_a_command_is_printed_without_wrapping():
    """A wrapped command could not be copied from a terminal."""
    file = io.StringIO()
    terminal = Terminal(
        Console(file=file, width=20, force_terminal=True), StepTimer(total_steps=10)
    )
    terminal.print_text("cuboid train --resume runs/NAME-TIME")
    terminal.close()
    assert "cuboid train --resume runs/NAME-TIME\n" in file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_shows_a_bar_below_the_rows_until_the_end(width):
    """The bar leaves columns for a ^C: if ^C wrapped into the next line, a copy of the bar would
    remain."""
    file = io.StringIO()
    out = Console(file=file, force_terminal=True, width=width)
    terminal = Terminal(out, StepTimer(total_steps=10), every=5)
    for step in range(1, 11):
        terminal.step(row(step))
    terminal.close()
    text = file.getvalue()
    assert "━" in text
    assert "10/10" in text
    assert re.findall(r"step +(\d+)/", text) == ["1", "5", "10"]
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    bars = [part for part in re.split(r"[\r\n]", plain) if "━" in part]
    assert bars
    assert all(len(bar.rstrip()) <= width - 4 for bar in bars)
    assert "\x1b[2K" in text[text.rindex("━") :], "the last thing that happens to it"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown"


def test_the_cursor_is_visible_while_the_bar_is_shown():
    file = io.StringIO()
    Terminal(Console(file=file, force_terminal=True), StepTimer(total_steps=10))
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_the_time_left_excludes_the_first_step():
    clock = FakeClock()
    pace = StepTimer(total_steps=10, clock=clock)
    assert pace.seconds_left is None
    clock.now += 60  # compiling, say
    pace.mark(1)
    assert pace.seconds_left is None
    for step, seconds in ((2, 2.0), (3, 4.0)):  # with a validation
        clock.now += seconds
        pace.mark(step)
    assert pace.seconds_per_step == pytest.approx(3.0)
    assert pace.seconds_left == pytest.approx(21.0)


def test_the_time_left_of_a_resumed_run_counts_its_own_steps():
    clock = FakeClock()
    pace = StepTimer(total_steps=100, clock=clock)
    for step in (91, 92):
        clock.now += 1.0
        pace.mark(step)
    assert pace.seconds_left == pytest.approx(8.0)


def test_advice_is_requested_once_when_the_timer_is_reliable():
    clock = FakeClock()
    asked: list[tuple[float, int]] = []

    def advise(seconds_per_step: float, steps_left: int) -> str:
        asked.append((seconds_per_step, steps_left))
        return "try less"

    out, file = console(terminal=False)
    terminal = Terminal(out, StepTimer(total_steps=1000, clock=clock), every=1000, advise=advise)
    clock.now += 500  # the first step warms up
    for step in range(1, 9):
        terminal.step(row(step))
        clock.now += 5
    ((seconds_per_step, steps_left),) = asked
    assert (seconds_per_step, steps_left) == (5.0, 997)
    assert [line for line in file.getvalue().splitlines() if "step" not in line] == ["try less"]
