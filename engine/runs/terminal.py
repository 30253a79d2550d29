"""What a run shows on the terminal: rows of a table every so many steps, and a bar for each."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from engine.formatting import format_bytes, format_count
from engine.runs.metrics import StepMetrics

REFRESH_SECONDS = 0.2
RELIABLE_SECONDS = 10.0
"""How long steps are measured before advice rests on them; the first one, which warms up, aside."""
LINES = 30
"""About how many rows a run prints whose config does not say how often."""
CTRL_C_COLUMNS = 4
"""What a bar leaves free for the ^C that terminals print. In the last column it would begin a line,
and what was drawn of the bar would stay above it."""
BAR_TEXT_COLUMNS = 60


@dataclass(kw_only=True)
class StepTimer:
    """Seconds a step on the wall clock, validations and all, the first step aside."""

    total_steps: int
    clock: Callable[[], float] = time.monotonic
    _first: tuple[int, float] | None = field(default=None, init=False)
    _last: tuple[int, float] | None = field(default=None, init=False)

    def mark(self, step: int) -> None:
        """Step ``step`` is done."""
        self._last = step, self.clock()
        self._first = self._first or self._last

    @property
    def steps_left(self) -> int:
        return self.total_steps - self._last[0] if self._last else self.total_steps

    @property
    def seconds_per_step(self) -> float | None:
        """None until two steps are done."""
        if self._first is None or self._last is None or self._first[0] == self._last[0]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])

    @property
    def seconds_left(self) -> float | None:
        """None until two steps are done."""
        pace = self.seconds_per_step
        return None if pace is None else pace * self.steps_left

    @property
    def is_reliable(self) -> bool:
        """Whether enough was measured to act on."""
        if self._first is None or self._last is None:
            return False
        return self._last[1] - self._first[1] >= RELIABLE_SECONDS


class Terminal:
    """A row every ``every`` steps (None: some thirty in all), and at the first, the last and each
    validation; above a bar that shows every step where a person is watching.

    ``advise`` is asked once, as soon as the pace is steady, with seconds a step and steps left.
    """

    def __init__(
        self,
        console: Console,
        timer: StepTimer,
        *,
        every: int | None = None,
        first_step: int = 0,
        advise: Callable[[float, int], str | None] | None = None,
    ) -> None:
        self._console, self._timer, self._advise = console, timer, advise
        self._every = every or round_interval(timer.total_steps - first_step)
        self._bar: Progress | None = None
        self._drawn, self._headed = 0.0, False
        if console.is_terminal:
            self._bar = _bar(console)
            self._task = self._bar.add_task(
                "", total=timer.total_steps, completed=first_step, eta="-", loss=""
            )
            self._bar.start()
            console.show_cursor(True)  # a process that is killed could not

    def print_text(self, text: str) -> None:
        """Print text as it is: a command that is wrapped could not be copied."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, row: StepMetrics) -> None:
        timer = self._timer
        first = not self._headed
        timer.mark(row.step)
        eta, last = format_duration(timer.seconds_left), row.step == timer.total_steps
        if self._bar is not None:
            self._bar.update(self._task, completed=row.step, eta=eta, loss=f"loss {row.loss:.4f}")
        if row.step % self._every == 0 or first or last or row.val_loss is not None:
            self._print_row(row, eta)
        self._give_advice()
        if self._bar is not None and (last or timer.clock() - self._drawn >= REFRESH_SECONDS):
            self._drawn = timer.clock()
            self._bar.refresh()

    def _print_row(self, row: StepMetrics, eta: str) -> None:
        if not self._headed:
            self._headed = True
            self.print_text(format_header(row, self._timer.total_steps))
        self.print_text(format_row(row, self._timer.total_steps, eta))
        if row.val_loss is not None:
            self.print_text(format_validation(row, self._timer.total_steps))

    def _give_advice(self) -> None:
        seconds = self._timer.seconds_per_step
        if self._advise is None or seconds is None or not self._timer.is_reliable:
            return
        advice = self._advise(seconds, self._timer.steps_left)
        self._advise = None
        if advice is not None:
            print_wrapped(self._console, advice)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def print_wrapped(console: Console, text: str) -> None:
    """Print text on a console: on a terminal wrapped between words, in a file a line each."""
    if console.is_terminal:
        text = "\n".join(wrap(line, console.width) for line in text.split("\n"))
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def wrap(text: str, width: int) -> str:
    """A line of text in as many as it takes; words, such as paths, stay whole."""
    if len(text) <= width:
        return text
    return textwrap.fill(
        text,
        width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def round_interval(steps: int) -> int:
    """1, 2, 5, 10, 20, 50 ...: the first that makes at most about thirty rows of so many steps."""
    power = 1
    while True:
        for number in (power, 2 * power, 5 * power):
            if number * LINES >= steps:
                return number
        power *= 10


def _bar(console: Console) -> Progress:
    width = console.width - CTRL_C_COLUMNS - BAR_TEXT_COLUMNS
    columns = [
        BarColumn(bar_width=max(4, min(width, 40))),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("ETA {task.fields[eta]}"),
    ]
    # no thread of its own: on a CPU it would take its turns from the matmuls
    return Progress(*columns, console=console, auto_refresh=False, transient=True)


def format_header(row: StepMetrics, total_steps: int) -> str:
    """The titles of the columns that rows such as ``row`` have."""
    cells = "".join(f"{title:>{width}}" for title, width, _ in _cells(row, ""))
    return " " * len(_step_column(row, total_steps)) + cells


def format_row(row: StepMetrics, total_steps: int, eta: str) -> str:
    """A step in one line of at most 80 columns, up to 999,999 steps; each value has its place."""
    cells = "".join(f"{text:>{width}}" for _, width, text in _cells(row, eta))
    return _step_column(row, total_steps) + cells


def format_validation(row: StepMetrics, total_steps: int) -> str:
    """The validation that followed a step."""
    return f"{_step_column(row, total_steps)}  val loss {row.val_loss:.4f}"


def _step_column(row: StepMetrics, total_steps: int) -> str:
    return f"step {row.step:{len(str(total_steps))}}/{total_steps}"


def _cells(row: StepMetrics, eta: str) -> list[tuple[str, int, str]]:
    """Title, width and text of each column behind the step."""
    return [
        ("loss", 8, f"{row.loss:.4f}"),
        ("lr", 8, f"{row.lr:.1e}"),
        ("norm", 8, _norm(row.grad_norm)),
        ("tok/s", 6, format_count(row.tokens_per_second).replace(" ", "")),
        ("ms/step", 8, _milliseconds(1000 * row.seconds)),
        *([] if row.mfu is None else [("MFU", 6, f"{row.mfu:.1%}")]),
        ("memory", 9, format_bytes(row.memory_bytes)),
        ("ETA", 9, eta),
    ]


def _norm(norm: float) -> str:
    return f"{norm:.3f}" if 0.001 <= norm < 1000 else f"{norm:.1e}"


def _milliseconds(number: float) -> str:
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"


def format_duration(seconds: float | None) -> str:
    """Seconds as 4:05 or 1:04:05, and from a day on as 1d 04h; '-' for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
