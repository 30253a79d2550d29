"""The settings of a run as it recorded them, from which its plan is made again. No torch.

RUN/statements.json holds what the config file, the command line and the environment stated when the
run began, each with its place. The user's files are not read again: they may have changed since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.checkpoint.compatibility import FIXED
from engine.checkpoint.manifest import first_problem
from engine.config import overrides as command_line
from engine.config.declared.limits import Budget, ConfigValueError
from engine.config.resolve import Precedence, SettingSource, read_setting_sources, show
from engine.config.schema import Settings, all_settings, user_name
from engine.config.values import (
    COMMAND_LINE,
    Document,
    Origin,
    Symbol,
    TrackedDict,
    origins_of,
    plain,
)
from engine.config.values import Path as Keys
from engine.errors import ConfigError, Problem, UserError
from engine.plan import ConfigFile, Plan, plan_from
from engine.runs.folder import RunFolder


class _RecordModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecordedSetting(_RecordModel):
    """A ``SettingSource`` as JSON; ``written`` is the text that messages show."""

    name: str
    written: str
    value: Any
    file: str
    line: int
    weight: Precedence
    remark: str = ""

    @classmethod
    def of(cls, stated: SettingSource) -> RecordedSetting:
        return cls(
            name=stated.name,
            written=show(stated.written),
            value=stated.value,
            file=stated.origin.file,
            line=stated.origin.line,
            weight=stated.precedence,
            remark=stated.remark,
        )

    def stated(self) -> SettingSource:
        return SettingSource(
            name=self.name,
            written=Symbol(self.written),  # is shown as its text
            value=tuple(self.value) if isinstance(self.value, list) else self.value,
            origin=Origin(self.file, self.line, 0),
            precedence=self.weight,
            remark=self.remark,
        )


class RecordedNote(_RecordModel):
    """A key of the config that has no effect, and why."""

    file: str
    line: int
    message: str


class RunRecord(_RecordModel):
    """The content of statements.json, and ``text``, that of config.py.

    ``config`` is the absolute path of the config file, which identifies the run; "" where an older
    version recorded none. ``source`` is the path as the user gave it. ``data_parallel`` counts the
    copies of the model. ``fixed`` holds the settings that the weights depend on, resolved.
    """

    format: Literal[1] = 1
    config: str
    name: str
    source: str
    overrides: tuple[str, ...] = ()
    data_parallel: int = 1
    statements: dict[str, RecordedSetting]
    notes: tuple[RecordedNote, ...] = ()
    fixed: dict[str, Any]
    text: str = ""

    @classmethod
    def of(cls, plan: Plan) -> RunRecord:
        said = plan.sources
        return cls(
            config=str(plan.config.path) if plan.config.path.is_absolute() else "",
            name=plan.settings.name,
            source=plan.settings.source,
            overrides=plan.config.overrides,
            data_parallel=plan.layout.data,
            statements={key: RecordedSetting.of(stated) for key, stated in said.settings.items()},
            notes=tuple(
                RecordedNote(file=note.file, line=note.line, message=note.message)
                for note in said.notes
            ),
            fixed=_fixed(plan.settings),
            text=plan.config.text,
        )

    def plan(self, *, gpus: int | None, overrides: Sequence[str] = ()) -> Plan:
        """Make the run's plan again on ``gpus``, by default on the fewest that hold one copy of the
        model. ``overrides`` (``KEY=VALUE``) replace what was recorded.

        Raises ConfigError with every problem of the overrides.
        """
        given = _parse(overrides)
        said = read_setting_sources(self.source, _document(given), {})
        for setting, stated in self._recorded(given, said.settings).items():
            if (
                setting not in said.settings
                or said.settings[setting].precedence < stated.precedence
            ):
                said.settings[setting] = stated
        said.notes += [Problem(note.file, note.line, None, note.message) for note in self.notes]
        config = ConfigFile(
            path=Path(self.config), text=self.text, overrides=(*self.overrides, *overrides)
        )
        return plan_from(said, name=self.name, gpus=gpus, config=config)

    def _recorded(
        self, given: Mapping[Keys, object], overriding: Mapping[str, SettingSource]
    ) -> dict[str, SettingSource]:
        """Select what the overrides leave: one of a section replaces all that is in it. The sizes
        of the model stay, though they followed from a setting that is overridden."""
        kept = {
            setting: statement.stated()
            for setting, statement in self.statements.items()
            if not any(tuple(statement.name.split("."))[: len(path)] == path for path in given)
        }
        if not given or "model.preset" in overriding:
            return kept
        pinned = {
            setting: SettingSource(
                name=user_name(setting),
                written=value,
                value=value,
                origin=Origin(self.source, 0, 0),
                precedence=Precedence.IMPLIED,
                remark=" of the run",
            )
            for setting, value in self.fixed.items()
            if setting in all_settings()
        }
        return pinned | kept


def write_record(folder: RunFolder, plan: Plan) -> None:
    """Write the config, its settings and what they were resolved from into the run's folder."""
    folder.record(
        config=plan.config.text,
        resolved=plan.settings.model_dump(mode="json"),
        statements=RunRecord.of(plan).model_dump(exclude={"text"}),
    )


def read_record(folder: RunFolder) -> RunRecord:
    """Read what the run recorded; of a run of an older version, which recorded no statements, what
    its settings resolved to. Raises UserError where there is neither."""
    if not folder.statements.is_file():
        return _record_from_settings(folder, recorded_settings(folder))
    try:
        found = json.loads(folder.statements.read_bytes())
        return RunRecord.model_validate({**found, "text": _text(folder)})
    except OSError as error:
        raise UserError(f"{folder.statements} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{folder.statements}: {first_problem(error)}") from None
    except (ValueError, TypeError):
        raise UserError(f"{folder.statements} is not a run's record") from None


def recorded_config_path(folder: RunFolder) -> str | None:
    """Read the absolute path of the config file that the run is of; None where it was not
    recorded."""
    try:
        found = json.loads(folder.statements.read_bytes())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and found else None


def recorded_settings(folder: RunFolder) -> Settings:
    """Read what the run's settings resolved to. Raises UserError where it is no run of this
    version."""
    try:
        return Settings.model_validate_json(folder.resolved.read_bytes())
    except OSError as error:
        raise UserError(f"{folder.resolved} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{folder.resolved}: {first_problem(error)}") from None


def plan_of_run(folder: RunFolder, *, gpus: int | None, overrides: Sequence[str] = ()) -> Plan:
    """Make the plan of a run on ``gpus``, by default on the fewest that hold one copy of the model,
    with ``overrides`` (``KEY=VALUE``) of what it recorded.

    Raises:
        UserError: no settings were recorded, or the overrides are of another model.
        ConfigError: with every problem of the overrides.
    """
    record = read_record(folder)
    plan = record.plan(gpus=gpus, overrides=overrides)
    for name, recorded in sorted(record.fixed.items()):
        if name.startswith("model.") and _value(plan.settings, name) != recorded:
            raise UserError(f"{plan.cite(name)}, and the run's weights are of {recorded!r}")
    return plan


def _record_from_settings(folder: RunFolder, settings: Settings) -> RunRecord:
    """Make a record in which every setting that is not its default is stated."""
    statements = {}
    for name, field in all_settings().items():
        value = _value(settings, name)
        if field.default_factory is not None or field.default != value:
            statements[name] = RecordedSetting(
                name=user_name(name),
                written=show(value),
                value=value,
                file=str(folder.resolved),
                line=0,
                weight=Precedence.CONFIG_FILE,
            )
    return RunRecord(
        config="",
        name=settings.name,
        source=settings.source,
        statements=statements,
        fixed=_fixed(settings),
        text=_text(folder),
    )


def _parse(overrides: Sequence[str]) -> dict[Keys, object]:
    problems: list[Problem] = []
    given = command_line.parse(overrides, Budget(), problems.append)
    if problems:
        raise ConfigError(problems)
    return given


def _document(given: Mapping[Keys, object]) -> Document:
    """Make a config of the overrides alone."""
    table, problems = TrackedDict(), list[Problem]()
    for path, value in given.items():
        try:
            command_line.apply(table, path, value)
        except ConfigValueError as error:
            problems.append(Problem(COMMAND_LINE, 0, None, str(error)))
    if problems:
        raise ConfigError(problems)
    return Document(
        values={str(name): plain(value) for name, value in table.items()},
        origins=origins_of(table),
        overridden=frozenset(given),
    )


def _fixed(settings: Settings) -> dict[str, Any]:
    return {name: _value(settings, name) for name in sorted(FIXED)}


def _value(settings: Settings, name: str) -> Any:
    return attrgetter(name)(settings)


def _text(folder: RunFolder) -> str:
    try:
        return folder.config.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
