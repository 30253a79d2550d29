"""Definition of a setting: its name for users, its description, and its accepted values as text."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, PydanticUndefined, core_schema

from engine.files import paths

BAD_PATH = "bad_path"  # pydantic's name for an error of ``IsPath``
LARGEST = 2**31 - 1  # of any count: products of a few counts still fit in a float


class Section(BaseModel):
    """A group of settings: exact types, immutable, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class OneOf:
    """Marks a string that must be a name in a registry, which is only read when a value is
    checked."""

    names: Callable[[], Sequence[str]]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str) -> str:
        if value not in self.names():
            raise ValueError
        return value


@dataclass(frozen=True)
class IsPath:
    """Marks a string as a path: expands a leading ``~`` and rejects names that no file can have."""

    exists: tuple[str, ...] = ()
    """Kinds of file (``engine.files.paths``) that a run can read there; empty if the run creates
    the path."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._expand, handler(source))

    def _expand(self, value: str) -> str:
        try:
            return paths.expand(value)
        except ValueError as error:
            raise PydanticCustomError(BAD_PATH, "{reason}", {"reason": str(error)}) from None


@dataclass(frozen=True)
class OrWord:
    """Marks a setting that also accepts a word. The word stands for a value that is found later, so
    the schema never sees it."""

    word: str


def marks(field: FieldInfo) -> Iterator[Any]:
    """Yield the marks of a field beyond its types, such as ``Ge`` or ``IsPath``."""
    yield from field.metadata
    yield from _marks(field.annotation)


def _marks(annotation: Any) -> Iterator[Any]:
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        yield from inner[1:]
        inner = inner[:1]
    for part in inner:
        yield from _marks(part)


def setting(
    meaning: str, default: Any = ..., *, name: str | None = None, shown: str | None = None
) -> Any:
    """Declare a setting of a section.

    Args:
        meaning: one line for ``cuboid settings``.
        default: a value, or a function of the fields before it; none if the setting is required.
        name: the user's name for it, if it differs from the field's name.
        shown: text for a default that is computed.
    """
    extra: JsonDict | None = {"shown": shown} if shown else None
    if callable(default):
        return Field(
            default_factory=default, title=name, description=meaning, json_schema_extra=extra
        )
    return Field(default, title=name, description=meaning, json_schema_extra=extra)


def accepts(field: FieldInfo) -> str:
    """Describe the values that a setting accepts, such as "int >= 1 or None"."""
    return _either(_choices(field.annotation, field.metadata))


def takes(field: FieldInfo, value: object) -> bool:
    """Return whether a setting accepts ``value``."""
    if any(isinstance(mark, OrWord) and mark.word == value for mark in field.metadata):
        return True
    kind: Any = Annotated[field.annotation, *field.metadata, None]
    try:
        TypeAdapter(kind, config=Section.model_config).validate_python(value)
    except ValidationError:
        return False
    return True


def default_of(field: FieldInfo) -> str:
    """Format the default as in a config file; empty if the setting is required."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "shown" in extra:
        return str(extra["shown"])
    return "" if field.default is PydanticUndefined else repr(field.default)


def _choices(annotation: Any, marks: Sequence[Any] = ()) -> list[str]:
    """List the alternatives that an annotation accepts; ``marks`` are its bounds or names."""
    origin, inner = get_origin(annotation), get_args(annotation)
    for mark in marks:
        if isinstance(mark, OneOf):
            return [repr(name) for name in mark.names()]
        if isinstance(mark, IsPath):
            return ["path"]
    if origin is Annotated:
        return _choices(inner[0], inner[1:])
    if origin is Literal:
        return [repr(value) for value in inner]
    if origin in (Union, types.UnionType):
        return [choice for part in inner for choice in _choices(part)]
    if origin is tuple:
        kinds = [_either(_choices(part)) for part in inner if part is not Ellipsis]
        return [f"tuple of {kinds[0]}" if Ellipsis in inner else f"tuple ({', '.join(kinds)})"]
    if annotation is type(None):
        return ["None"]
    words = [repr(mark.word) for mark in marks if isinstance(mark, OrWord)]
    return [annotation.__name__ + _bounds(marks), *words]


def _bounds(marks: Sequence[Any]) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {bound}"
        for mark in marks
        for key, sign in signs.items()
        if (bound := getattr(mark, key, LARGEST)) < LARGEST
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def _either(choices: list[str]) -> str:
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last
