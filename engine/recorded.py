"""A run's settings as it recorded them, and a plan of the same run in another layout. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from pydantic import ValidationError

from engine.checkpoint.changes import FIXED
from engine.config import overrides as command_line
from engine.config.declared.bounds import Budget, Illegal
from engine.config.errors import ConfigError, Problem
from engine.config.schema import Settings, all_settings, user_name
from engine.config.values import COMMAND_LINE, Document, Origin, Table, origins_of, plain
from engine.errors import Refused
from engine.plan import Plan, plan_of
from engine.run_folder import RunFolder


def recorded_settings(folder: RunFolder) -> Settings:
    """What the run's settings resolved to. Raises Refused where it is no run of this version."""
    try:
        return Settings.model_validate_json(folder.resolved.read_bytes())
    except OSError as error:
        raise Refused(f"{folder.resolved} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Refused(f"{folder.resolved}: {where}: {first['msg']}") from None


def plan_of_run(folder: RunFolder, *, gpus: int | None, overrides: Sequence[str] = ()) -> Plan:
    """The plan of a run on ``gpus``, by default on the fewest that hold one copy of the model, with
    ``overrides`` (``KEY=VALUE``) of what it recorded.

    Raises:
        Refused: no settings were recorded, or the overrides are of another model.
        ConfigError: with every problem of the overrides.
    """
    file, recorded = str(folder.resolved), recorded_settings(folder)
    document = _document(recorded, file, overrides)
    plan = plan_of(document, file, gpus=gpus, environ={})
    for name in sorted(name for name in FIXED if name.startswith("model.")):
        value = attrgetter(name)
        if value(plan.settings) != value(recorded):
            raise Refused(f"{plan.cite(name)}, and the run's weights are of {value(recorded)!r}")
    return plan


def _document(settings: Settings, file: str, overrides: Sequence[str]) -> Document:
    """As if a config stated every setting."""
    table, origin = Table(), Origin(file, 0, 0)
    for name in all_settings():
        path = tuple(user_name(name).split("."))
        command_line.apply(table, path, attrgetter(name)(settings), origin)
    problems: list[Problem] = []
    given = command_line.parse(overrides, Budget(), problems.append)
    for path, value in given.items():
        try:
            command_line.apply(table, path, value)
        except Illegal as error:
            problems.append(Problem(COMMAND_LINE, 0, None, str(error)))
    if problems:
        raise ConfigError(problems)
    return Document(
        values={str(name): plain(value) for name, value in table.items()},
        origins=origins_of(table),
        overridden=frozenset(given),
    )
