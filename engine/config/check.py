"""Statements against the schema: settings, and a line for each value that cannot be one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from engine.config.fields import BAD_PATH, LARGEST, accepts
from engine.config.resolve import SettingSource, SettingSources
from engine.config.schema import Settings, all_settings, user_name
from engine.errors import Problem


class InvalidSettingError(Exception):
    """A value that is not known, because what was stated of it is wrong."""


@dataclass(frozen=True)
class Checked:
    """``settings`` are whole and valid; those in ``invalid`` hold a stand-in."""

    settings: Settings
    invalid: frozenset[str]
    problems: tuple[Problem, ...]

    @property
    def known(self) -> Settings:
        """The settings, of which to read one in ``invalid`` raises InvalidSettingError."""
        return cast(Settings, _ValidSettings(self.settings, "", self.invalid))


class _ValidSettings:
    """A section that keeps some of its values back."""

    def __init__(self, section: BaseModel, prefix: str, invalid: frozenset[str]) -> None:
        self._section, self._prefix, self._invalid = section, prefix, invalid

    def __getattr__(self, name: str) -> Any:
        if self._prefix + name in self._invalid:
            raise InvalidSettingError(name)
        value = getattr(self._section, name)
        if isinstance(value, BaseModel):
            return _ValidSettings(value, f"{self._prefix}{name}.", self._invalid)
        return value


def check(sources: SettingSources, name: str, source: str) -> Checked:
    """Settings from completed statements; ``name`` and ``source`` are the file's."""
    fields = all_settings()
    required = {key for key, field in fields.items() if field.is_required()}
    invalid = set(sources.conflicting)
    # Said here: before 2.14 pydantic makes defaults of what is missing.
    missing = [key for key in fields if key in required - invalid - sources.settings.keys()]
    problems = [_missing(key, fields[key], sources) for key in missing]
    invalid.update(missing)
    while True:
        values = {
            key: stated.value
            for key, stated in sources.settings.items()
            if key in fields and key not in invalid
        }
        values |= dict.fromkeys(invalid & required, 1)
        tree = {"name": name, "source": source, "model": {}, **_tree(values)}
        try:
            return Checked(Settings.model_validate(tree), frozenset(invalid), tuple(problems))
        except ValidationError as error:
            found = error.errors()
            errors = {_setting_at(one["loc"], fields): one["type"] for one in found}
            reasons = {
                _setting_at(one["loc"], fields): one["msg"]
                for one in found
                if one["type"] == BAD_PATH
            }
        assert not invalid >= errors.keys(), f"stand-ins are refused: {errors}"
        for key, kind in errors.items():
            if key in reasons and key not in invalid:
                problems.append(sources.settings[key].problem(reasons[key]))
            elif key not in invalid and kind != "default_factory_not_called":
                problems.append(_rejected_value(fields[key], sources.settings[key]))
        invalid |= errors.keys()


def _missing(setting: str, field: FieldInfo, sources: SettingSources) -> Problem:
    """The line for a required setting, at the name in the file that may be meant for it."""
    name = user_name(setting)
    message = f"{name} is missing: {field.description} ({accepts(field)})"
    own = sources.own_name_for(setting)
    if own is not None:
        origin = sources.own[own]
        message += f"; did you mean {name} instead of {own}?"
        return Problem(origin.file, origin.line, None, message)
    return Problem(sources.file, 0, None, message)


def _rejected_value(field: FieldInfo, stated: SettingSource) -> Problem:
    """The line for a value that the schema refuses."""
    if isinstance(stated.value, int) and stated.value > LARGEST:
        return stated.problem(f"must be at most {LARGEST}")
    return stated.problem(f"must be {accepts(field)}")


def _setting_at(location: tuple[int | str, ...], fields: Mapping[str, FieldInfo]) -> str:
    """The setting that pydantic means; it also counts list items and branches of a union."""
    parts = [str(part) for part in location]
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
