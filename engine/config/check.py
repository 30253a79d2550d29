"""Validation of each setting's value against the schema, and the messages for invalid values."""

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
    """Raised where a rule reads a setting whose value is missing or invalid."""


@dataclass(frozen=True)
class Checked:
    """The settings of a config after validation, and one problem for each invalid value."""

    settings: Settings
    """Complete and valid for the schema: settings in ``invalid`` have a placeholder value."""
    invalid: frozenset[str]
    """Names of the settings without a valid value."""
    problems: tuple[Problem, ...]

    @property
    def known(self) -> Settings:
        """``settings`` for rules: reading one that is in ``invalid``, or not determined yet, raises
        InvalidSettingError.

        The cast lets rules be written, and type-checked, as if all settings were valid. A rule that
        reads an invalid setting ends there (run_rules.py), since its problem is already reported.
        """
        return cast(Settings, _ValidSettings(self.settings, "", self.invalid))


class _ValidSettings:
    """Read-only view of a section that raises InvalidSettingError for its invalid settings."""

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
    """Validate all settings and report each missing or invalid one.

    ``sources`` must include derived settings. ``name`` is the run's name and ``source`` the path of
    the config file.
    """
    fields = all_settings()
    required = {key for key, field in fields.items() if field.is_required()}
    invalid = sources.conflicting | sources.undetermined
    # Checked here, because pydantic before 2.14 computes defaults from missing fields.
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
            details = error.errors()
            errors = {_setting_at(detail["loc"], fields): detail["type"] for detail in details}
            reasons = {
                _setting_at(detail["loc"], fields): detail["msg"]
                for detail in details
                if detail["type"] == BAD_PATH
            }
        assert not invalid >= errors.keys(), f"placeholders are rejected: {errors}"
        for key, kind in errors.items():
            if key in reasons and key not in invalid:
                problems.append(sources.settings[key].problem(reasons[key]))
            elif key not in invalid and kind != "default_factory_not_called":
                problems.append(_rejected_value(fields[key], sources.settings[key]))
        invalid |= errors.keys()


def _missing(setting: str, field: FieldInfo, sources: SettingSources) -> Problem:
    """Describe a missing required setting; where the file defines a similar name, point at it."""
    name = user_name(setting)
    message = f"{name} is missing: {field.description} ({accepts(field)})"
    similar = sources.own_name_for(setting)
    if similar is not None:
        message += f"; did you mean {name} instead of {similar}?"
        return sources.own[similar].problem(message)
    return Problem(sources.file, 0, None, message)


def _rejected_value(field: FieldInfo, stated: SettingSource) -> Problem:
    """Describe a value that the schema rejects."""
    if isinstance(stated.value, int) and stated.value > LARGEST:
        return stated.problem(f"must be at most {LARGEST}")
    return stated.problem(f"must be {accepts(field)}")


def _setting_at(location: tuple[int | str, ...], fields: Mapping[str, FieldInfo]) -> str:
    """Return the setting at a location of pydantic's, which also has list items and union
    branches."""
    parts = [str(part) for part in location]
    while ".".join(parts) not in fields:
        parts.pop()
    return ".".join(parts)


def _tree(values: Mapping[str, object]) -> dict[str, Any]:
    """Convert dotted names to nested dicts."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return tree
