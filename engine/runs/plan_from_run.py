"""The record of a run's settings, from which its plan is made again. No torch.

RUN/statements.json has the settings that the config file, the command line and the environment
stated when the run started, each with its origin. The user's files are not read again, because
they may have changed since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from engine.checkpoint.compatibility import FIXED
from engine.checkpoint.manifest import first_problem
from engine.config import overrides as command_line
from engine.config.language.limits import Budget, ConfigValueError
from engine.config.resolve import Precedence, SettingSource, read_setting_sources, show
from engine.config.schema import Settings, all_settings, user_name
from engine.config.values import (
    COMMAND_LINE,
    Document,
    Origin,
    TrackedDict,
    origins_of,
    plain,
)
from engine.config.values import Path as Keys
from engine.errors import ConfigError, Problem, UserError
from engine.plan import ConfigFile, Plan, plan_from
from engine.runs.folder import RunFolder
from engine.runs.statements import RecordedNote, RecordedSetting, RecordModel


class RunRecord(RecordModel):
    """The content of statements.json, and of config.py (``text``)."""

    format: Literal[1] = 1
    config: str
    """The absolute path of the config file, which identifies the runs of a config; "" in runs of an
    older version."""
    name: str
    source: str
    """The path of the config file as the user gave it."""
    overrides: tuple[str, ...] = ()
    """KEY=VALUE on the command line."""
    data_parallel: int = 1
    statements: dict[str, RecordedSetting]
    notes: tuple[RecordedNote, ...] = ()
    fixed: dict[str, Any]
    """The settings on which the weights depend, resolved."""
    text: str = ""

    @classmethod
    def of(cls, plan: Plan) -> RunRecord:
        """Make the record of a plan."""
        sources = plan.sources
        return cls(
            config=str(plan.config.path) if plan.config.path.is_absolute() else "",
            name=plan.settings.name,
            source=plan.settings.source,
            overrides=plan.config.overrides,
            data_parallel=plan.layout.data,
            statements={
                key: RecordedSetting.of(source) for key, source in sources.settings.items()
            },
            notes=tuple(
                RecordedNote(file=note.file, line=note.line, message=note.message)
                for note in sources.notes
            ),
            fixed=_fixed(plan.settings),
            text=plan.config.text,
        )

    def plan(self, *, gpus: int | None, overrides: Sequence[str] = ()) -> Plan:
        """Make the run's plan on ``gpus``, by default on as many as one copy of the model needs.
        ``overrides`` (``KEY=VALUE``) replace recorded settings.

        Raises ConfigError with all problems of the overrides.
        """
        given = _parse(overrides)
        sources = read_setting_sources(self.source, _document(given), {})
        settings = sources.settings
        for name, recorded in self._recorded(given, settings).items():
            if name not in settings or settings[name].precedence < recorded.precedence:
                settings[name] = recorded
        sources.notes += [Problem(note.file, note.line, None, note.message) for note in self.notes]
        config = ConfigFile(
            path=Path(self.config), text=self.text, overrides=(*self.overrides, *overrides)
        )
        return plan_from(sources, name=self.name, gpus=gpus, config=config)

    def _recorded(
        self, given: Mapping[Keys, object], overriding: Mapping[str, SettingSource]
    ) -> dict[str, SettingSource]:
        """Select the recorded settings that the overrides do not replace; an override of a section
        replaces all of it. The model's sizes are fixed, even if they were derived from a setting
        that is overridden."""
        recorded = {
            setting: statement.setting_source()
            for setting, statement in self.statements.items()
            if not any(tuple(statement.name.split("."))[: len(path)] == path for path in given)
        }
        if not given or "model.preset" in overriding:
            return recorded
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
        return pinned | recorded


def write_record(folder: RunFolder, plan: Plan) -> None:
    """Write the config file, the resolved settings and the record into the run's folder."""
    folder.record(
        config=plan.config.text,
        resolved=plan.settings.model_dump(mode="json"),
        statements=RunRecord.of(plan).model_dump(exclude={"text"}),
    )


def read_record(folder: RunFolder) -> RunRecord:
    """Read the record of a run. Runs of older versions have no record: build it from their resolved
    settings. Raises UserError if the run has neither."""
    if not folder.statements.is_file():
        return _record_from_settings(folder, recorded_settings(folder))
    try:
        content = json.loads(folder.statements.read_bytes())
        return RunRecord.model_validate({**content, "text": _text(folder)})
    except OSError as error:
        raise UserError(f"{folder.statements} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{folder.statements}: {first_problem(error)}") from None
    except (ValueError, TypeError):
        raise UserError(f"{folder.statements} is not the record of a run; restore it") from None


def recorded_config_path(folder: RunFolder) -> str | None:
    """Read the absolute path of the run's config file; None if it was not recorded."""
    try:
        path = json.loads(folder.statements.read_bytes())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if isinstance(path, str) and path else None


def recorded_settings(folder: RunFolder) -> Settings:
    """Read the resolved settings of a run. Raises UserError if they are missing or invalid."""
    try:
        return Settings.model_validate_json(folder.resolved.read_bytes())
    except OSError as error:
        raise UserError(f"{folder.resolved} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{folder.resolved}: {first_problem(error)}") from None


def plan_of_run(folder: RunFolder, *, gpus: int | None, overrides: Sequence[str] = ()) -> Plan:
    """Make the plan of a run on ``gpus``, by default on as many as one copy of the model needs.
    ``overrides`` (``KEY=VALUE``) replace recorded settings.

    Raises:
        UserError: the run recorded no settings, or the overrides change the model.
        ConfigError: the overrides are invalid; lists all problems.
    """
    record = read_record(folder)
    plan = record.plan(gpus=gpus, overrides=overrides)
    for name, recorded in sorted(record.fixed.items()):
        if name.startswith("model.") and _value(plan.settings, name) != recorded:
            raise UserError(
                f"{plan.cite(name)} cannot be overridden: the run's weights have {recorded!r}; "
                "leave it out"
            )
    return plan


def evaluation_plan_of_run(
    folder: RunFolder, *, gpus: int | None, overrides: Sequence[str] = ()
) -> Plan:
    """Make the plan of a run for an evaluation, as ``plan_of_run`` does. An evaluation makes no
    update, so its ranks read batches of the size that the run's ranks had, whatever
    GLOBAL_BATCH_SIZE is and however many ranks there are."""
    settings = recorded_settings(folder)
    if settings.global_batch_size is not None:
        of_rank = ("GLOBAL_BATCH_SIZE=None", f"BATCH_SIZE={settings.batch_size}")
        overrides = (*of_rank, *overrides)
    return plan_of_run(folder, gpus=gpus, overrides=overrides)


def _record_from_settings(folder: RunFolder, settings: Settings) -> RunRecord:
    """Make a record in which every setting that differs from its default is stated."""
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
    """Parse overrides. Raises ConfigError with all problems."""
    problems: list[Problem] = []
    given = command_line.parse(overrides, Budget(), problems.append)
    if problems:
        raise ConfigError(problems)
    return given


def _document(given: Mapping[Keys, object]) -> Document:
    """Make a config that has only the overrides. Raises ConfigError with all problems."""
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
    """Read the run's config file; "" if it cannot be read."""
    try:
        return folder.config.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
