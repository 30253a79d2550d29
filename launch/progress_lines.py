"""Progress of a long command: a bar on a terminal, otherwise a line per tenth."""

from __future__ import annotations

import sys
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

TENTHS = 10


class ProgressLines:
    """Shows on stderr how many bytes are done."""

    def __init__(self, title: str) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn(title),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._title, self._task, self._tenth = title, self._bar.add_task(title), 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are done."""
        self._bar.update(self._task, completed=done, total=total)
        tenth = TENTHS * done // max(1, total)
        if self._bar.disable and tenth > self._tenth:
            self._tenth = tenth
            print(f"{self._title}: {done:,} of {total:,} bytes", file=sys.stderr, flush=True)
