"""Statements against the schema: settings, and a line for each value that cannot be one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from engine.config.errors import Problem
from engine.config.fields import BAD_PATH, LARGEST, accepts
from engine.config.resolve import Stated, Statements
from engine.config.schema import Settings, all_settings, user_name


class Unknown(Exception):
    """A value that is not known, because what was stated of it is wrong."""


@dataclass(frozen=True)
class Checked:
    """``settings`` are whole and valid; those in ``bad`` hold a stand-in."""

    settings: Settings
    bad: frozenset[str]
    problems: tuple[Problem, ...]

    @property
    def known(self) -> Settings:
        """The settings, of which to read one in ``bad`` raises Unknown."""
        return cast(Settings, _Known(self.settings, "", self.bad))


class _Known:
    """A section that keeps some of its values back."""

    def __init__(self, section: BaseModel, prefix: str, bad: frozenset[str]) -> None:
        self._section, self._prefix, self._bad = section, prefix, bad

    def __getattr__(self, name: str) -> Any:
        if self._prefix + name in self._bad:
            raise Unknown(name)
        value = getattr(self._section, name)
        if isinstance(value, BaseModel):
            return _Known(value, f"{self._prefix}{name}.", self._bad)
        return value


def check(statements: Statements, name: str, source: str) -> Checked:
    """Settings from completed statements; ``name`` and ``source`` are the file's."""
    fields = all_settings()
    required = {key for key, field in fields.items() if field.is_required()}
    bad = set(statements.disputed)
    # Said here: before 2.14 pydantic makes defaults of what is missing.
    missing = [key for key in fields if key in required - bad - statements.settings.keys()]
    problems = [_missing(key, fields[key], statements) for key in missing]
    bad.update(missing)
    while True:
        values = {
            key: stated.value
            for key, stated in statements.settings.items()
            if key in fields and key not in bad
        }
        values |= dict.fromkeys(bad & required, 1)
        tree = {"name": name, "source": source, "model": {}, **_tree(values)}
        try:
            return Checked(Settings.model_validate(tree), frozenset(bad), tuple(problems))
        except ValidationError as error:
            found = error.errors()
            errors = {_setting(one["loc"], fields): one["type"] for one in found}
            reasons = {
                _setting(one["loc"], fields): one["msg"] for one in found if one["type"] == BAD_PATH
            }
        assert not bad >= errors.keys(), f"stand-ins are refused: {errors}"
        for key, kind in errors.items():
            if key in reasons and key not in bad:
                problems.append(statements.settings[key].problem(reasons[key]))
            elif key not in bad and kind != "default_factory_not_called":
                problems.append(_refused(fields[key], statements.settings[key]))
        bad |= errors.keys()


def _missing(setting: str, field: FieldInfo, statements: Statements) -> Problem:
    """The line for a required setting, at the name in the file that may be meant for it."""
    name = user_name(setting)
    message = f"{name} is missing: {field.description} ({accepts(field)})"
    own = statements.own_name_for(setting)
    if own is not None:
        origin = statements.own[own]
        return Problem(origin.file, origin.line, None, f"{message}; did you mean {name} by {own}?")
    return Problem(statements.file, 0, None, message)


def _refused(field: FieldInfo, stated: Stated) -> Problem:
    """The line for a value that the schema refuses."""
    if isinstance(stated.value, int) and stated.value > LARGEST:
        return stated.problem(f"is more than {LARGEST}")
    return stated.problem(f"must be {accepts(field)}")


def _setting(place: tuple[int | str, ...], fields: Mapping[str, FieldInfo]) -> str:
    """The setting that pydantic means; it also counts list items and branches of a union."""
    parts = [str(part) for part in place]
    while ".".join(parts) not in fields:
        parts.pop()
    return ".".join(parts)


def _tree(values: Mapping[str, object]) -> dict[str, Any]:
    """Dotted names -> nested dicts."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return tree
