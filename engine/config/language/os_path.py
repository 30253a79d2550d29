"""Functions of os and os.path that a config may call: those that only compute with text.

None of them reads a disk: the result could differ between the machines of one run, and each rank
reads the config again. ``~`` is expanded with the environment given to the reader.
"""

import os
from collections.abc import Callable, Mapping

from engine.config.language.limits import STRING_LENGTH, ConfigValueError

TEXT: Mapping[str, Callable[..., object]] = {
    "os.getcwd": os.getcwd,
    "os.path.abspath": os.path.abspath,
    "os.path.basename": os.path.basename,
    "os.path.dirname": os.path.dirname,
    "os.path.isabs": os.path.isabs,
    "os.path.join": os.path.join,
    "os.path.normpath": os.path.normpath,
    "os.path.split": os.path.split,
    "os.path.splitext": os.path.splitext,
}
EXPANDUSER = "os.path.expanduser"
FUNCTIONS = sorted([*TEXT, EXPANDUSER])
MODULES = ("os", "pathlib")  # messages about their other functions list FUNCTIONS


def call(name: str, args: list[object], environ: Mapping[str, str]) -> object:
    """Call one of FUNCTIONS. Raises ConfigValueError for invalid arguments."""
    if not all(isinstance(item, str) for item in args):
        raise ConfigValueError(f"{name}() takes strings")
    if sum(len(str(item)) for item in args) > STRING_LENGTH:
        raise ConfigValueError(f"{name}() of more than {STRING_LENGTH:,} characters")
    try:
        if name == EXPANDUSER:
            return _expanduser(*map(str, args), environ=environ)
        return TEXT[name](*args)
    except TypeError:
        raise ConfigValueError(f"{name}() cannot take {len(args)} arguments") from None


def _expanduser(path: str, *, environ: Mapping[str, str]) -> str:
    first, separator, rest = path.partition("/")
    if not first.startswith("~"):
        return path
    if first != "~":
        raise ConfigValueError(f"{first[:20]} is another user's folder; only ~ is expanded")
    if "HOME" not in environ:
        raise ConfigValueError("HOME is not set in the environment")
    return environ["HOME"].rstrip("/") + separator + rest or "/"
