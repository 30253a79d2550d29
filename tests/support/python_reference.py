"""Configs executed by Python itself, with foreign modules replaced by recorders of names."""

import os
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, SimpleNamespace
from typing import Any

from engine.config.values import Symbol

FUNCTIONS = {
    function.__name__: function
    for function in (abs, bool, dict, float, int, len, list, max, min, round, str, sum, tuple)
}


class Foreign:
    """An object of a foreign module: stores its name and its call, like a Symbol."""

    def __init__(self, name: str, call: tuple[Any, Any] | None = None) -> None:
        self.symbol = Symbol(name) if call is None else Symbol(name, *call)

    def __getattr__(self, name: str) -> "Foreign":
        return Foreign(f"{self.symbol}.{name}")

    def __getitem__(self, key: object) -> "Foreign":
        return Foreign(f"{self.symbol}[{key!r}]")

    def __call__(self, *args: object, **kwargs: object) -> "Foreign":
        return Foreign(str(self.symbol), (recorded(args), recorded(kwargs)))


def recorded(value: object) -> object:
    """Return ``value`` with symbols in place of foreign objects."""
    match value:
        case Foreign():
            return value.symbol
        case list():
            return [recorded(item) for item in value]
        case tuple():
            return tuple(recorded(item) for item in value)
        case dict():
            return {key: recorded(item) for key, item in value.items()}
    return value


def run(text: str, environ: Mapping[str, str] | None = None) -> dict[str, object]:
    """Execute harmless ``text`` and return its variables, without ``os`` and ``__future__``."""
    environ = dict(environ or {})
    system = SimpleNamespace(
        environ=environ,
        getenv=lambda key, default=None: environ.get(key, default),
        getcwd=os.getcwd,
        path=os.path,
    )

    future = SimpleNamespace(annotations=object())
    system_modules = {"os": system, "__future__": future}

    def import_module(name: str, *names: Any) -> object:
        """Import as ``__import__`` does. ``names``: globals, locals, the names after ``from ...
        import``, level."""
        if name in system_modules:
            return system_modules[name]
        if name == "os.path":
            return os.path if names[2] else system
        return Foreign(name if names[2] else name.partition(".")[0])

    builtins = {**FUNCTIONS, "range": lambda *bounds: list(range(*bounds))}
    scope: dict[str, Any] = {"__builtins__": {**builtins, "__import__": import_module}}
    exec(compile(text, "config", "exec"), scope)
    functions = (FunctionType, BuiltinFunctionType)
    of_the_system = (system, system.environ, system.path, future.annotations)
    return {
        key: recorded(value)
        for key, value in scope.items()
        if not key.startswith("__")
        and not isinstance(value, functions)
        and all(value is not item for item in of_the_system)
    }
