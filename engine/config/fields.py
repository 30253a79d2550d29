"""What a setting is made of: its name for the user, its meaning, and what it takes, in words."""

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

from engine import paths

BAD_PATH = "bad_path"  # pydantic's name for an error of ``IsPath``
LARGEST = 2**31 - 1  # of any count: keeps what is computed from a few of them within a float


class Section(BaseModel):
    """A group of settings: types are exact, values final, unknown keys refused, no NaN."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class OneOf:
    """Text that is a name in a registry, which is asked only when it is needed."""

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
    """Text that is a path: a leading ``~`` is expanded, a name that no file can have is refused.

    ``exists``: the kinds of files of ``engine.paths``, one of which a run needs there; empty for a
    path that the run makes.
    """

    exists: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._expand, handler(source))

    def _expand(self, value: str) -> str:
        try:
            return paths.expand(value)
        except ValueError as error:
            raise PydanticCustomError(BAD_PATH, "{reason}", {"reason": str(error)}) from None


def marks(field: FieldInfo) -> Iterator[Any]:
    """Yield what a field's annotation says beyond its types, such as ``Ge`` or ``IsPath``."""
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
    """A field of a section.

    Args:
        meaning: one line for ``cuboid settings``.
        default: a value, or a function of the fields before it; none where one must be given.
        name: what the user calls it, if not by the field's name.
        shown: how a default that is computed is shown.
    """
    extra: JsonDict | None = {"shown": shown} if shown else None
    if callable(default):
        return Field(
            default_factory=default, title=name, description=meaning, json_schema_extra=extra
        )
    return Field(default, title=name, description=meaning, json_schema_extra=extra)


def accepts(field: FieldInfo) -> str:
    """What a setting takes, as in "int >= 1 or None"."""
    return _either(_choices(field.annotation, field.metadata))


def takes(field: FieldInfo, value: object) -> bool:
    """Whether a setting takes ``value``."""
    kind: Any = Annotated[field.annotation, *field.metadata, None]
    try:
        TypeAdapter(kind, config=Section.model_config).validate_python(value)
    except ValidationError:
        return False
    return True


def default_of(field: FieldInfo) -> str:
    """The default as the user would write it; empty where the setting must be given."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "shown" in extra:
        return str(extra["shown"])
    return "" if field.default is PydanticUndefined else repr(field.default)


def _choices(annotation: Any, marks: Sequence[Any] = ()) -> list[str]:
    """What an annotation takes, one alternative each; ``marks`` are its bounds or names."""
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
    return [annotation.__name__ + _bounds(marks)]


def _bounds(marks: Sequence[Any]) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [
        f"{sign} {bound}"
        for mark in marks
        for key, sign in signs.items()
        if (bound := getattr(mark, key, LARGEST)) < LARGEST
    ]
    return f" {' and '.join(found)}" if found else ""


def _either(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
