"""What the user is told instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class UserError(Exception):
    """The user's input cannot be used. One line that says what would be; exit code 2."""


class RunError(Exception):
    """The run failed for a reason that one line explains; exit code 1."""


@dataclass(frozen=True)
class Problem:
    """One line for the user: where (line 0: nowhere inside the file) and what.

    ``column`` (from 1) is given for syntax and for constructs a config may not contain.
    """

    file: str
    line: int
    column: int | None
    message: str

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f":{self.line}"
        if self.line and self.column is not None:
            place += f":{self.column}"
        return f"{place}: {self.message}"

    def __lt__(self, other: Problem) -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[str, int, int, str]:
        return self.file, self.line, self.column or 0, self.message


class ConfigError(Exception):
    """A config that is refused; ``problems`` are sorted by place, each once."""

    problems: tuple[Problem, ...]

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))
