"""Calls in a config: built-in functions, the environment, and symbols, which record the call."""

import sys
from collections.abc import Callable, Mapping

from engine.config.language import builtin_functions, operations, os_path
from engine.config.language.forbidden_syntax import NOT_ALLOWED
from engine.config.language.limits import ConfigValueError
from engine.config.values import Symbol, TrackedDict

ENVIRON = Symbol("os.environ")
LOOKUP = "an environment lookup takes a name and at most one default"
ENVIRONMENT_LOOKUPS = (Symbol("os.environ.get"), Symbol("os.getenv"))

Call = Callable[[list[object], TrackedDict], object]
"""Positional and keyword arguments -> result."""


class ForbiddenCallError(Exception):
    """A function that a config may not call."""


def builtin(name: str) -> Call:
    """Return the built-in function ``name``; raise ForbiddenCallError unless it is allowed."""
    if name == "dict":
        return _make_dict
    if name in builtin_functions.FUNCTIONS:
        return _without_keywords(name, lambda args: builtin_functions.call(name, args))
    allowed = ", ".join(sorted([*builtin_functions.FUNCTIONS, "dict"]))
    raise ForbiddenCallError(f"a call of {name} {NOT_ALLOWED}; allowed calls: {allowed}")


def external(function: object, environ: Mapping[str, str]) -> Call:
    """Return the function that a symbol stands for. A call of an unknown function gives a symbol.

    Raises ForbiddenCallError for functions of Python's library, and if ``function`` is no symbol.
    """
    if not isinstance(function, Symbol):
        raise ForbiddenCallError(f"a call of {operations.kind(function)} {NOT_ALLOWED}")
    name, module = function.name, function.name.partition(".")[0]
    if function in ENVIRONMENT_LOOKUPS:
        return lambda args, kwargs: _get_environment(environ, args, kwargs)
    if name in os_path.FUNCTIONS:
        return _without_keywords(name, lambda args: os_path.call(name, args, environ))
    if module in sys.stdlib_module_names:
        allowed = f"; allowed calls: {', '.join(os_path.FUNCTIONS)}"
        hint = allowed if module in os_path.MODULES else ""
        raise ForbiddenCallError(f"a call of {name} {NOT_ALLOWED}{hint}")
    return lambda args, kwargs: Symbol(
        str(function), tuple(args), {str(key): value for key, value in kwargs.items()}
    )


def environment(environ: Mapping[str, str], args: list[object], optional: bool = False) -> object:
    """Return ``os.environ[name]`` or, if ``optional``, ``os.environ.get(name, default)``."""
    name = args[0] if args else None
    if not isinstance(name, str) or len(args) > 2:
        raise ConfigValueError(LOOKUP)
    if name not in environ and not optional:
        raise ConfigValueError(
            f"{name} is not set in the environment; set it, or use os.environ.get({name!r}, "
            "DEFAULT)"
        )
    default = args[1] if len(args) == 2 else None
    return environ.get(name, default)


def _get_environment(environ: Mapping[str, str], args: list[object], kwargs: TrackedDict) -> object:
    if set(kwargs) - {"default"}:
        raise ConfigValueError(LOOKUP)
    return environment(environ, [*args, *kwargs.values()], optional=True)


def _without_keywords(name: str, function: Callable[[list[object]], object]) -> Call:
    def call(args: list[object], kwargs: TrackedDict) -> object:
        if kwargs:
            raise ConfigValueError(f"{name}() takes no keyword argument {next(iter(kwargs))}=")
        return function(args)

    return call


def _make_dict(args: list[object], kwargs: TrackedDict) -> TrackedDict:
    if args and (len(args) > 1 or not isinstance(args[0], TrackedDict)):
        raise ConfigValueError("dict() takes at most one dict, followed by keyword arguments")
    table = TrackedDict()
    for part in (*args, kwargs):
        assert isinstance(part, TrackedDict)
        table.update_from(part)
    return table
