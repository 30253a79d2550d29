"""What reading a config file gives: plain values, foreign symbols, and where each came from."""

from dataclasses import dataclass

COMMAND_LINE = "command line"

Path = tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """Where a value was written; an override's is the command line, at line 0."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Symbol:
    """Something of a module that is never imported here: ``colossalai.amp.AMP_TYPE.NAIVE``.

    A call remembers its arguments: ``TensorShardStrategy()`` has ``args == ()``; a symbol that
    was not called has None for both.
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
    """A config file with everything it inherits, evaluated; ``values`` holds plain trees.

    values      top-level name -> None, bool, int, float, str, list, tuple, dict or Symbol
    origins     ("model", "checkpoint") -> where that value was written; list items by index
    read_names  names that the files themselves read
    imported    names that imports of foreign modules bound, and nothing assigned since
    overridden  paths that the command line set
    text        of the file itself
    """

    values: dict[str, object]
    origins: dict[Path, Origin]
    read_names: frozenset[str] = frozenset()
    imported: frozenset[str] = frozenset()
    overridden: frozenset[Path] = frozenset()
    text: str = ""

    def origin(self, path: Path) -> Origin:
        """The origin of ``path`` or of its nearest parent; KeyError for an unknown name."""
        while path not in self.origins and len(path) > 1:
            path = path[:-1]
        return self.origins[path]


class TrackedDict(dict[object, object]):
    """A dict under evaluation: it remembers where each of its entries was written."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[object, Origin] = {}

    def put(self, key: object, value: object, origin: Origin) -> None:
        self[key] = value
        self.origins[key] = origin

    def update_from(self, other: "TrackedDict") -> None:
        """Like ``dict.update``: the entries of ``other`` and their origins win."""
        self.update(other)
        self.origins.update(other.origins)


def plain(value: object) -> object:
    """A copy of ``value`` that shares nothing with it, of plain containers."""
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
    """The origin of every dict entry inside ``value``, by its path from ``path`` on."""
    found: dict[Path, Origin] = {}
    if isinstance(value, TrackedDict):
        for key, item in value.items():
            found[(*path, str(key))] = value.origins[key]
            found.update(origins_of(item, (*path, str(key))))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            found.update(origins_of(item, (*path, str(index))))
    return found
