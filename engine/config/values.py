"""What reading a config file gives: plain values, foreign symbols, and where each came from."""

from dataclasses import dataclass

COMMAND_LINE = "command line"


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


Path = tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A config file with everything it inherits, evaluated; ``values`` holds plain trees.

    values      top-level name -> None, bool, int, float, str, list, tuple, dict or Symbol
    origins     ("model", "checkpoint") -> where that value was written; list items by index
    read_names  names that the files themselves read
    imported    names that imports of foreign modules bound, and nothing assigned since
    overridden  paths that the command line set
    """

    values: dict[str, object]
    origins: dict[Path, Origin]
    read_names: frozenset[str] = frozenset()
    imported: frozenset[str] = frozenset()
    overridden: frozenset[Path] = frozenset()

    def origin(self, path: Path) -> Origin:
        """The origin of ``path`` or of its nearest parent; KeyError for an unknown name."""
        while path not in self.origins and len(path) > 1:
            path = path[:-1]
        return self.origins[path]
