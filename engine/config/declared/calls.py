"""Calls in a config: harmless builtins, the environment, and symbols that only remember theirs."""

import ast
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from engine.config.declared import operations, os_path
from engine.config.declared.forbidden_syntax import NOT_ALLOWED
from engine.config.declared.limits import ConfigValueError
from engine.config.values import Symbol, TrackedDict

if TYPE_CHECKING:
    from engine.config.declared.expressions import Evaluator

ENVIRON = Symbol("os.environ")
LOOKUP = "the environment is asked for a name, with at most a default"
ENVIRONMENT_LOOKUPS = (Symbol("os.environ.get"), Symbol("os.getenv"))


def call(evaluator: "Evaluator", node: ast.Call) -> object:
    """The value of a call; of a foreign symbol, a symbol again."""
    function = node.func
    if isinstance(function, ast.Name) and function.id not in evaluator.scope:
        return _call_builtin(evaluator, node, function.id)
    symbol = evaluator.evaluate(function)
    if symbol in ENVIRONMENT_LOOKUPS:
        args, kwargs = _arguments(evaluator, node)
        if set(kwargs) - {"default"}:
            raise ConfigValueError(LOOKUP)
        return environment(evaluator.environ, [*args, *kwargs.values()], optional=True)
    if not isinstance(symbol, Symbol):
        what = operations.kind(symbol)
        raise evaluator.fail(node, f"a call of {what} {NOT_ALLOWED}", column=True)
    module = symbol.name.partition(".")[0]
    if symbol.name in os_path.FUNCTIONS:
        args, kwargs = _arguments(evaluator, node)
        if kwargs:
            raise ConfigValueError(f"{symbol.name}() takes no {next(iter(kwargs))}= here")
        return os_path.call(symbol.name, args, evaluator.environ)
    if module in sys.stdlib_module_names:
        others = f"; what can be called: {', '.join(os_path.FUNCTIONS)}"
        message = (
            f"a call of {symbol.name} {NOT_ALLOWED}{others if module in os_path.MODULES else ''}"
        )
        raise evaluator.fail(node, message, column=True)
    args, kwargs = _arguments(evaluator, node)
    return Symbol(str(symbol), tuple(args), {str(key): kwargs[key] for key in kwargs})


def environment(environ: Mapping[str, str], args: list[object], optional: bool = False) -> object:
    """``os.environ[name]``, or if ``optional`` ``os.environ.get(name, default)``."""
    name = args[0] if args else None
    if not isinstance(name, str) or len(args) > 2:
        raise ConfigValueError(LOOKUP)
    if name not in environ and not optional:
        raise ConfigValueError(f"{name} is not set in the environment")
    default = args[1] if len(args) == 2 else None
    return environ.get(name, default)


def _call_builtin(evaluator: "Evaluator", node: ast.Call, name: str) -> object:
    if name != "dict" and name not in operations.FUNCTIONS:
        what_can = ", ".join(sorted([*operations.FUNCTIONS, "dict"]))
        message = f"a call of {name} {NOT_ALLOWED}; what can be called: {what_can}"
        raise evaluator.fail(node, message, column=True)
    args, kwargs = _arguments(evaluator, node)
    if name == "dict":
        return _make_dict(args, kwargs)
    if kwargs:
        raise ConfigValueError(f"{name}() takes no {next(iter(kwargs))}= here")
    return operations.call(name, args)


def _make_dict(args: list[object], kwargs: TrackedDict) -> TrackedDict:
    if args and (len(args) > 1 or not isinstance(args[0], TrackedDict)):
        raise ConfigValueError("dict() takes names with values, and before them at most one dict")
    table = TrackedDict()
    for part in (*args, kwargs):
        assert isinstance(part, TrackedDict)
        table.update_from(part)
    return table


def _arguments(evaluator: "Evaluator", node: ast.Call) -> tuple[list[object], TrackedDict]:
    """The arguments of a call; the problems of all of them are reported."""
    args: list[object] = []
    kwargs = TrackedDict()
    steps: list[Callable[[], None]] = [lambda: args.extend(evaluator.items(node.args))]
    steps += [partial(_keyword, evaluator, keyword, kwargs) for keyword in node.keywords]
    evaluator.each(steps)
    return args, kwargs


def _keyword(evaluator: "Evaluator", keyword: ast.keyword, kwargs: TrackedDict) -> None:
    given = TrackedDict()
    if keyword.arg is None:
        given = evaluator.table(keyword.value)
    else:
        value = evaluator.evaluate(keyword.value)
        given.put(keyword.arg, value, evaluator.source.origin(keyword))
    for name in given:
        if not isinstance(name, str):
            raise evaluator.fail(keyword, f"the argument {name!r} is not a name")
        if name in kwargs:
            raise evaluator.fail(keyword, f"{name}= is given twice")
    kwargs.update_from(given)
