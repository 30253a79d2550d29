"""The reader of config files, which are declarative Python and are parsed, never executed.

The syntax tree is evaluated over plain values. A name imported from another package is a symbol;
another config file that is imported is read in the same way.
"""

import ast
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.config import overrides as command_line
from engine.config.language.expressions import Evaluator, Module, UnresolvedValueError
from engine.config.language.interpreter import Interpreter
from engine.config.language.limits import (
    FILES,
    INHERITANCE_DEPTH,
    PROBLEMS,
    TOTAL_BYTES,
    Budget,
    BudgetExceededError,
    ConfigValueError,
)
from engine.config.language.source_text import load
from engine.config.values import COMMAND_LINE, Document, Origin, TrackedDict, origins_of, plain
from engine.errors import ConfigError, Problem


def read(
    path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Document:
    """Read the config file at ``path`` with the files it inherits from, and apply ``overrides``
    (``KEY=VALUE``).

    ``environ`` is the value of ``os.environ`` in the file. Raises ConfigError with every problem
    found.
    """
    reading = _Reading(Path(path), environ or {})
    document = None
    try:
        document = reading.document(overrides)
    except ConfigError as error:
        reading.problems.extend(error.problems)
    except BudgetExceededError as error:
        reading.problems.append(Problem(str(path), 0, None, str(error)))
    except OSError as error:  # of the current folder
        reading.problems.append(Problem(str(path), 0, None, f"cannot be read: {error.strerror}"))
    except (RecursionError, MemoryError):
        reading.problems.append(
            Problem(str(path), 0, None, "nested too deeply to be read; assign parts to names")
        )
    if document is None or reading.problems:
        raise ConfigError(reading.problems)
    return document


class _Reading:
    """State of one read: the files read so far, their problems, and the remaining budget."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._path = path
        self._environ = environ
        self._budget = Budget()
        self._overrides = TrackedDict()
        self._files: dict[Path, Interpreter | None] = {}
        self._open: list[Path] = []  # chain of files, each imported by the previous one
        self._bytes = 0
        self._read_names: set[str] = set()
        self._text = ""  # of the file at ``path``

    def document(self, overrides: Sequence[str]) -> Document | None:
        """Return the evaluated file with overrides; None if there are problems."""
        given = command_line.parse(overrides, self._budget, self._report)
        for path, value in given.items():
            if len(path) == 1:
                self._overrides.put(path[0], value, command_line.ORIGIN)
        file = self._read(Path(os.path.normpath(self._path.absolute())))
        if self.problems:
            return None
        for path, value in given.items():
            if len(path) == 1:
                continue
            try:
                command_line.apply(file.scope, path, value)
            except ConfigValueError as error:
                self._report(Problem(COMMAND_LINE, 0, None, str(error)))
        return self._document(file, frozenset(given))

    def _document(self, file: Interpreter, overridden: frozenset[tuple[str, ...]]) -> Document:
        values = TrackedDict()
        for name, value in file.scope.items():
            if not isinstance(value, Module):
                self._check(str(name), value, file.scope.origins[name])
                values.put(name, value, file.scope.origins[name])
        return Document(
            values={str(name): plain(value) for name, value in values.items()},
            origins=origins_of(values),
            read_names=frozenset(self._read_names),
            imported=frozenset(file.imported),
            overridden=overridden,
            text=self._text,
        )

    def _check(self, name: str, value: object, origin: Origin) -> None:
        """Charge the budget for copying ``value``, which may have grown through another name
        since its evaluation."""
        try:
            self._budget.charge(value)
        except ConfigValueError as error:
            raise ConfigError([origin.problem(f"{name}: {error}")]) from None

    def _report(self, problem: Problem) -> None:
        self.problems.append(problem)
        if len(self.problems) >= PROBLEMS:
            raise BudgetExceededError(f"only the first {PROBLEMS} problems are shown")

    def _inherit(self, path: Path) -> Interpreter:
        """Return the file at ``path`` for an import; raise UnresolvedValueError if it was
        rejected."""
        path = Path(os.path.normpath(path))
        if path in self._open:
            cycle = [*self._open[self._open.index(path) :], path]
            raise ConfigValueError(f"circular import: {' -> '.join(map(self._name, cycle))}")
        if path not in self._files:
            self._files[path] = None
            try:
                self._files[path] = self._read(path)
            except ConfigError as error:
                for problem in error.problems:
                    self._report(problem)
        file = self._files[path]
        if file is None:
            raise UnresolvedValueError
        return file

    def _name(self, path: Path) -> str:
        """Return the path for messages: relative to the working folder unless the config's own path
        was given as absolute."""
        return str(path) if self._path.is_absolute() else os.path.relpath(path)

    def _read(self, path: Path) -> Interpreter:
        """Read and evaluate one file. Raises ConfigError if it cannot be parsed."""
        if len(self._files) > FILES or len(self._open) > INHERITANCE_DEPTH:
            raise ConfigValueError(
                f"more than {FILES} files, or imports more than {INHERITANCE_DEPTH} deep"
            )
        source = load(path, self._name(path))
        self._bytes += len(source.text)
        if self._bytes > TOTAL_BYTES:
            raise ConfigValueError(f"the files together are longer than {TOTAL_BYTES // 1024} KiB")
        if not self._open:
            self._text = source.text
        tree = source.parse()
        self._read_names |= {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        }
        evaluator = Evaluator(source, TrackedDict(), self._budget, self._environ, self._report)
        file = Interpreter(path, evaluator, self._overrides, self._inherit)
        self._open.append(path)
        file.run(tree)
        self._open.pop()
        return file
