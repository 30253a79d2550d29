"""The terminal output of a run: a table with a row every few steps, and a progress bar."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from engine.formatting import format_bytes, format_count, format_duration
from engine.runs.epochs import EpochSummary
from engine.runs.metrics import StepMetrics

REFRESH_SECONDS = 0.2
RELIABLE_SECONDS = 10.0
"""Advice needs steps measured for this long, not counting the first step, which warms up."""
LINES = 30
"""The approximate number of rows of a run without log.every."""
CTRL_C_COLUMNS = 4
"""The columns that the bar leaves free for the ^C that terminals print. Without them ^C would wrap
to a new line, and a copy of the bar would remain above it."""
BAR_TEXT_COLUMNS = 60
"""The columns of the texts on the right of the bar."""


@dataclass(kw_only=True)
class StepTimer:
    """Measures the wall-clock seconds per step, including validations, excluding the first step."""

    total_steps: int
    clock: Callable[[], float] = time.monotonic
    _first: tuple[int, float] | None = field(default=None, init=False)
    _last: tuple[int, float] | None = field(default=None, init=False)

    def mark(self, step: int) -> None:
        """Record that ``step`` is done."""
        self._last = step, self.clock()
        self._first = self._first or self._last

    @property
    def steps_left(self) -> int:
        """The steps until the end of the run."""
        return self.total_steps - self._last[0] if self._last else self.total_steps

    @property
    def seconds_per_step(self) -> float | None:
        """The mean seconds per step so far; None until two steps are done."""
        if self._first is None or self._last is None or self._first[0] == self._last[0]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])

    @property
    def seconds_left(self) -> float | None:
        """The expected time until the end of the run; None until two steps are done."""
        seconds = self.seconds_per_step
        return None if seconds is None else seconds * self.steps_left

    @property
    def is_reliable(self) -> bool:
        """True if steps have been measured for RELIABLE_SECONDS."""
        if self._first is None or self._last is None:
            return False
        return self._last[1] - self._first[1] >= RELIABLE_SECONDS


class Terminal:
    """Prints a row every ``every`` steps (None: about thirty rows in all), at the first and the
    last step, and at each validation. On a terminal a progress bar below shows every step. An epoch
    has a line, unless it has fewer than ``every`` steps and ends at none of these rows.

    ``advise`` is called once, when the timer is reliable, with seconds per step and steps left; the
    text that it returns is printed.
    """

    def __init__(
        self,
        console: Console,
        timer: StepTimer,
        *,
        every: int | None = None,
        steps_done: int = 0,
        advise: Callable[[float, int], str | None] | None = None,
    ) -> None:
        self._console, self._timer, self._advise = console, timer, advise
        self._every = every or round_interval(timer.total_steps - steps_done)
        self._bar: Progress | None = None
        self._drawn, self._headed = 0.0, False
        if console.is_terminal:
            self._bar = _bar(console)
            self._task = self._bar.add_task(
                "", total=timer.total_steps, completed=steps_done, eta="-", loss=""
            )
            self._bar.start()
            console.show_cursor(True)  # a killed process could not restore it

    def print_text(self, text: str) -> None:
        """Print text without wrapping, so that commands in it can be copied."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, row: StepMetrics) -> None:
        """Update the progress bar; print a row if one is due."""
        timer = self._timer
        first = not self._headed
        timer.mark(row.step)
        eta, last = format_duration(timer.seconds_left), row.step == timer.total_steps
        if self._bar is not None:
            self._bar.update(self._task, completed=row.step, eta=eta, loss=f"loss {row.loss:.4f}")
        due = row.step % self._every == 0 or first or last or row.val_loss is not None
        if due:
            self._print_row(row, eta)
        if row.epoch is not None and (due or row.epoch.steps >= self._every):
            self.print_text(format_epoch(row.epoch))
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
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def print_wrapped(console: Console, text: str) -> None:
    """Print text: on a terminal wrapped between words, in a file without wrapping."""
    if console.is_terminal:
        text = "\n".join(wrap(line, console.width) for line in text.split("\n"))
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def wrap(text: str, width: int) -> str:
    """Wrap a line between words. A longer word, such as a path, is not broken."""
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
    """Return the first of 1, 2, 5, 10, 20, 50 ... that gives at most LINES rows for ``steps``."""
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
    # no refresh thread, which would compete with matmuls on a CPU
    return Progress(*columns, console=console, auto_refresh=False, transient=True)


def format_header(row: StepMetrics, total_steps: int) -> str:
    """Return the line of column titles for rows that have the same columns as ``row``."""
    cells = "".join(f"{title:>{width}}" for title, width, _ in _cells(row, ""))
    return " " * len(_step_column(row, total_steps)) + cells


def format_row(row: StepMetrics, total_steps: int, eta: str) -> str:
    """Return the row of a step; up to 999,999 steps it has at most 80 columns."""
    cells = "".join(f"{text:>{width}}" for _, width, text in _cells(row, eta))
    return _step_column(row, total_steps) + cells


def format_validation(row: StepMetrics, total_steps: int) -> str:
    """Format the line that reports a step's validation."""
    cells = [_step_column(row, total_steps), f"val loss {row.val_loss:.4f}"]
    numbers = {
        "perplexity": row.val_perplexity,
        "loss/byte": row.val_loss_per_byte,
        "loss/char": row.val_loss_per_character,
    }
    cells += [f"{name} {number:.5g}" for name, number in numbers.items() if number is not None]
    return "  ".join(cells)


def format_epoch(epoch: EpochSummary) -> str:
    """Format the line that summarizes an epoch."""
    cells = [
        f"epoch {epoch.epoch}",
        f"steps {epoch.first_step}-{epoch.last_step}",
        f"{epoch.seconds:.1f} s",
    ]
    losses = {"loss": epoch.train_loss, "val loss": epoch.val_loss}
    cells += [f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None]
    device, host = format_bytes(epoch.memory_bytes), format_bytes(epoch.host_memory_bytes)
    cells += [f"memory {device}", *([] if device == host else [f"host memory {host}"])]
    return "  ".join(cells)


def _step_column(row: StepMetrics, total_steps: int) -> str:
    return f"step {row.step:{len(str(total_steps))}}/{total_steps}"


def _cells(row: StepMetrics, eta: str) -> list[tuple[str, int, str]]:
    """Return the title, width and text of each column that follows the step's column."""
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
