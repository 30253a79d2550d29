"""``KEY=VALUE`` arguments of the command line: typed values for names and for paths inside them."""

import ast
import keyword
from collections.abc import Callable, Sequence
from dataclasses import replace

from engine.config.language.expressions import Evaluator, UnresolvedValueError
from engine.config.language.limits import STRING_LENGTH, Budget, ConfigValueError
from engine.config.language.operations import shown
from engine.config.language.source_text import Source
from engine.config.values import COMMAND_LINE, Origin, Path, TrackedDict
from engine.errors import ConfigError, Problem
from engine.files import paths

ORIGIN = Origin(COMMAND_LINE, 0, 0)
NOT_BARE = set("'\"()[]{}")  # characters that a string without quotes cannot contain

Report = Callable[[Problem], None]


def parse(overrides: Sequence[str], budget: Budget, report: Report) -> dict[Path, object]:
    """Map the path of each override to its value, the last value if there are several for a path;
    report malformed overrides.

    A value is an expression of the config language: ``3e-4``, ``True``, ``2*48``, ``dict(lr=0.1)``.
    Any other text, such as ``2d``, ``bf16`` or ``data/a.txt``, is a string.
    """
    values: dict[Path, object] = {}
    for override in overrides:
        name = _shown(override)

        def report_named(problem: Problem, name: str = name) -> None:
            report(replace(problem, column=None, message=f"{name}: {problem.message}"))

        if reason := paths.not_utf8(override):
            report_named(Problem(COMMAND_LINE, 0, None, reason))
            continue
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(map(_is_name, path)):
            example = "KEY=VALUE, such as BATCH_SIZE=8 or optimizer.lr=3e-4"
            report_named(Problem(COMMAND_LINE, 0, None, f"must have the form {example}"))
            continue
        try:
            values[path] = _value(text.strip(), budget, report_named)
        except UnresolvedValueError:
            continue
    return values


def apply(table: TrackedDict, path: Path, value: object, origin: Origin = ORIGIN) -> None:
    """Set ``path`` in ``table``; create missing dicts on the way and copy existing ones.

    Raises ConfigValueError if a value on the way is not a dict.
    """
    for depth, key in enumerate(path[:-1], start=1):
        inner = table.get(key)
        if not isinstance(inner, TrackedDict | None):
            name = ".".join(path)
            raise ConfigValueError(
                f"{name}: {'.'.join(path[:depth])} is {shown(inner)}, not a dict"
            )
        copy = TrackedDict()
        copy.update_from(inner or TrackedDict())
        table.put(key, copy, origin if inner is None else table.origins[key])
        table = copy
    table.put(path[-1], value, origin)


def _is_name(part: str) -> bool:
    return part.isidentifier() and not keyword.iskeyword(part) and not part.startswith("__")


def _value(text: str, budget: Budget, report: Report) -> object:
    source = Source(COMMAND_LINE, text)
    evaluator = Evaluator(source, TrackedDict(), budget, {}, report)
    bare = not NOT_BARE & set(text)
    if not text:
        raise _failure(report, "has no value; '' is the empty string")
    if len(text) > STRING_LENGTH:
        raise _failure(report, f"is longer than {STRING_LENGTH:,} characters")
    try:
        body = source.parse().body
    except ConfigError as error:
        if bare:
            return evaluator.evaluate(ast.Constant(text))
        message = error.problems[0].message
        raise _failure(report, f"{message}; a string with such characters needs quotes") from None
    if bare and not _is_literal(body, text):
        return evaluator.evaluate(ast.Constant(text))
    match body:
        case [ast.Expr(value)]:
            return evaluator.evaluate(value)
    raise _failure(report, "is not a single value")


def _is_literal(body: list[ast.stmt], text: str) -> bool:
    """Return whether ``text`` is a number, a constant or arithmetic, not a string that resembles
    code."""
    if len(body) != 1 or not isinstance(body[0], ast.Expr) or "#" in text or ";" in text:
        return False
    return not any(isinstance(node, ast.Name) for node in ast.walk(body[0]))


def _failure(report: Report, message: str) -> UnresolvedValueError:
    report(Problem(COMMAND_LINE, 0, None, message))
    return UnresolvedValueError()


def _shown(override: str) -> str:
    short = override if len(override) <= 60 else f"{override[:57]}..."
    return short if short.isprintable() else repr(short)
