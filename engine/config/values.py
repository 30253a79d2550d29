"""Values of a parsed config file: plain Python values and external symbols, with their
positions."""

from dataclasses import dataclass

from engine.errors import Problem

COMMAND_LINE = "command line"

Path = tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """The position of a value in a file; an override has the file "command line" and line 0."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def problem(self, message: str) -> Problem:
        """Make a problem at this line."""
        return Problem(self.file, self.line, None, message)


@dataclass(frozen=True)
class Symbol:
    """An object of a module that is never imported: ``colossalai.amp.AMP_TYPE.NAIVE``.

    A call records its arguments: ``TensorShardStrategy()`` has ``args == ()``. Both ``args`` and
    ``kwargs`` are None for a symbol that was not called.
    """

    name: str
    args: tuple[object, ...] | None = None
    kwargs: dict[str, object] | None = None

    def __str__(self) -> str:
        if self.args is None or self.kwargs is None:
            return self.name
        keywords = [f"{key}={value!r}" for key, value in self.kwargs.items()]
        return f"{self.name}({', '.join([*map(repr, self.args), *keywords])})"

    __repr__ = __str__


@dataclass(frozen=True)
class Document:
    """A config file, evaluated together with the files that it inherits from."""

    values: dict[str, object]
    """Top-level name -> None, bool, int, float, str, list, tuple, dict or Symbol."""
    origins: dict[Path, Origin]
    """("model", "checkpoint") -> position of that value; list items by index."""
    read_names: frozenset[str] = frozenset()
    """Names that the files themselves read."""
    imported: frozenset[str] = frozenset()
    """Names that were imported from external modules and not assigned afterwards."""
    overridden: frozenset[Path] = frozenset()
    """Paths of the values that the command line set."""
    text: str = ""
    """Text of the file itself, without inherited files."""

    def origin(self, path: Path) -> Origin:
        """Return the position of ``path`` or of its nearest parent. Raises KeyError for an unknown
        name."""
        while path not in self.origins and len(path) > 1:
            path = path[:-1]
        return self.origins[path]


class TrackedDict(dict[object, object]):
    """A dict during evaluation, with the position of each entry."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[object, Origin] = {}

    def put(self, key: object, value: object, origin: Origin) -> None:
        """Set an entry and its position."""
        self[key] = value
        self.origins[key] = origin

    def update_from(self, other: "TrackedDict") -> None:
        """Add all entries of ``other`` with their positions, like ``dict.update``."""
        self.update(other)
        self.origins.update(other.origins)


def plain(value: object) -> object:
    """Return a deep copy of ``value`` made of plain containers."""
    match value:
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case tuple():
            return tuple(plain(item) for item in value)
        case Symbol(name, tuple(args), dict(kwargs)):
            called = {key: plain(item) for key, item in kwargs.items()}
            return Symbol(name, tuple(plain(item) for item in args), called)
        case _:
            return value


def origins_of(value: object, path: Path = ()) -> dict[Path, Origin]:
    """Return the position of every dict entry inside ``value``, by its path, which starts with
    ``path``."""
    origins: dict[Path, Origin] = {}
    if isinstance(value, TrackedDict):
        for key, item in value.items():
            origins[(*path, str(key))] = value.origins[key]
            origins.update(origins_of(item, (*path, str(key))))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            origins.update(origins_of(item, (*path, str(index))))
    return origins
