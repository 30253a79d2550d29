"""What a run shows on the terminal: a bar, and a line every so many steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from engine.metrics import Row

REFRESH_SECONDS = 0.2
# What the estimate of speed rests on before it is acted on; the first step also warms up.
STEADY_STEPS, STEADY_SECONDS = 3, 10.0


@dataclass(kw_only=True)
class Pace:
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
    def steady(self) -> bool:
        """Whether enough was measured to act on."""
        if self._first is None or self._last is None:
            return False
        steps, seconds = self._last[0] - self._first[0], self._last[1] - self._first[1]
        return steps >= STEADY_STEPS and seconds >= STEADY_SECONDS


class Terminal:
    """A line every ``every`` steps, and at the last; above a bar where a person is watching.

    ``advise`` is asked once, as soon as the pace is steady, with seconds a step and steps left.
    """

    def __init__(
        self,
        console: Console,
        pace: Pace,
        *,
        every: int,
        advise: Callable[[float, int], str | None] | None = None,
    ) -> None:
        self._console, self._pace, self._every, self._advise = console, pace, every, advise
        self._bar: Progress | None = None
        self._drawn = 0.0
        if console.is_terminal:
            self._bar = _bar(console)
            self._task = self._bar.add_task("training", total=pace.total_steps, eta="-")
            self._bar.start()

    def say(self, text: str) -> None:
        """Print a line of text as it is."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, row: Row) -> None:
        pace = self._pace
        pace.mark(row.step)
        eta, last = duration(pace.seconds_left), row.step == pace.total_steps
        if self._bar is not None:
            self._bar.update(self._task, completed=row.step, eta=eta)
        if row.step % self._every == 0 or last or row.val_loss is not None:
            self.say(line(row, pace.total_steps, eta))
        self._give_advice()
        if self._bar is not None and (last or pace.clock() - self._drawn >= REFRESH_SECONDS):
            self._drawn = pace.clock()
            self._bar.refresh()

    def _give_advice(self) -> None:
        seconds = self._pace.seconds_per_step
        if self._advise is None or seconds is None or not self._pace.steady:
            return
        advice = self._advise(seconds, self._pace.steps_left)
        self._advise = None
        if advice is not None:
            self.say(advice)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(console: Console) -> Progress:
    columns = [
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("ETA {task.fields[eta]}"),
    ]
    # no thread of its own: on a CPU it would take its turns from the matmuls
    return Progress(*columns, console=console, auto_refresh=False, transient=True, expand=True)


def line(row: Row, total_steps: int, eta: str) -> str:
    """The step in one line of plain text."""
    total = f"{total_steps:,}"
    parts = [
        f"step {row.step:{len(total)},}/{total}",
        f"loss {row.loss:.4f}",
        *([] if row.val_loss is None else [f"val loss {row.val_loss:.4f}"]),
        f"lr {row.lr:.2e}",
        f"grad norm {row.grad_norm:.3g}",
        *([] if row.loss_scale is None else [f"loss scale {row.loss_scale:g}"]),
        *([f"{row.skipped} skipped"] if row.skipped else []),
        f"{row.tokens_per_second:,.0f} tokens/s",
        f"{size(row.memory_bytes)}",
        *([] if row.mfu is None else [f"MFU {row.mfu:.1%}"]),
        f"ETA {eta}",
    ]
    return " | ".join(parts)


def duration(seconds: float | None) -> str:
    """Seconds as 4:05 or 1:04:05; '-' for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(number: float) -> str:
    """Bytes as MiB, and as GiB from ten of them on."""
    return f"{number / 2**30:,.1f} GiB" if number >= 10 * 2**30 else f"{number / 2**20:,.0f} MiB"
