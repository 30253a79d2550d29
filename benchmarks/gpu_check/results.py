"""The rows of a check, each written to disk as soon as it is finished. Imports no torch."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WIDTH = 12


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One result of a case.

    ``text``: the line of the table.
    ``passed``: None if the row only reports a measurement.
    ``seconds``: the duration of the case; 0, printed as blank, if it was not measured.
    ``numbers``: the measurements in full precision.
    """

    case: str
    text: str
    passed: bool | None = None
    seconds: float = 0.0
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        mark = {True: "ok", False: "FAILED", None: "-"}[self.passed]
        seconds = f"{self.seconds:.1f}" if self.seconds else ""
        return f"{self.case:{WIDTH}} {mark:6} {seconds:>6}  {self.text}"


class Results:
    """The files ``results.jsonl`` and ``table.txt`` in ``folder``.

    A row is appended with a single write, so a killed check leaves all finished rows.
    """

    def __init__(self, folder: Path) -> None:
        self.rows: list[CaseResult] = []
        self._lock = threading.Lock()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        self._json = os.open(folder / "results.jsonl", flags, 0o644)
        self._table = os.open(folder / "table.txt", flags, 0o644)
        self.say(f"{'case':{WIDTH}} {'':6} {'s':>6}  result")

    def add(self, row: CaseResult) -> None:
        """Append a row to both files and print its line; a lock gives both files the same order."""
        with self._lock:
            self.rows.append(row)
            self._append(row.line())
            os.write(self._json, (json.dumps(asdict(row)) + "\n").encode())

    def say(self, line: str) -> None:
        """Append a line to the table and print it."""
        with self._lock:
            self._append(line)

    def _append(self, line: str) -> None:
        os.write(self._table, (line + "\n").encode())
        print(line, flush=True)
