"""Errors that are shown to the user as messages, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class UserError(Exception):
    """The user's input was rejected, with exit code 2. The message states what is accepted."""


class RunError(Exception):
    """The run failed, with exit code 1. The message states the cause."""


@dataclass(frozen=True)
class Problem:
    """A message to the user, and the position in a file that it is about."""

    file: str
    line: int
    """The number of the line, from 1; 0 if the problem is at no line."""
    column: int | None
    """The number of the column, from 1; only for syntax errors and constructs that a config may not
    contain."""
    message: str

    def __str__(self) -> str:
        position = self.file
        if self.line:
            position += f":{self.line}"
        if self.line and self.column is not None:
            position += f":{self.column}"
        return f"{position}: {self.message}"

    def __lt__(self, other: Problem) -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[str, int, int, str]:
        return self.file, self.line, self.column or 0, self.message


class ConfigError(Exception):
    """A config was rejected."""

    problems: tuple[Problem, ...]
    """Sorted by position, without duplicates."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))
