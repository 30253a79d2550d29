"""From what the user wrote to settings: whatever the spelling, each with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import islice
from operator import attrgetter

from engine.config import colossalai_values
from engine.config.aliases import ALIASES, IMPLIED
from engine.config.declared.limits import PROBLEMS
from engine.config.fields import takes
from engine.config.ignored_keys import IGNORED_KEYS
from engine.config.name_hints import closest, known, unknown_setting
from engine.config.schema import all_settings, user_name
from engine.config.values import COMMAND_LINE, Document, Origin, Path
from engine.errors import Problem

_KEYS = [*ALIASES, *IGNORED_KEYS]
SECTIONS = {key.rsplit(".", n)[0] for key in _KEYS for n in range(1, key.count(".") + 1)}
ENVIRONMENT = Origin("environment", 0, 0)


class Precedence(IntEnum):
    """How much a statement counts against others about the same setting."""

    IMPLIED = 0
    CONFIG_FILE = 1
    ENVIRONMENT = 2
    OVERRIDE = 3


@dataclass(frozen=True, kw_only=True)
class SettingSource:
    """What was said of a setting, and where: ``name`` and ``written`` are the user's own words,
    ``value`` is what they mean here."""

    name: str
    written: object
    value: object
    origin: Origin
    precedence: Precedence = Precedence.CONFIG_FILE
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.name}={show(self.written)}{self.remark}"

    def problem(self, message: str) -> Problem:
        return Problem(self.origin.file, self.origin.line, None, f"{self} {message}")


@dataclass
class SettingSources:
    """All that a config states, and what is wrong with how it does.

    ``settings`` is by our names; a setting in ``conflicting`` has no value that can be relied on.
    ``own`` are the names that the file defines for itself, and where; ``meant`` are the settings
    that unknown names stand for.
    """

    file: str
    settings: dict[str, SettingSource] = field(default_factory=dict)
    own: dict[str, Origin] = field(default_factory=dict)
    meant: set[str] = field(default_factory=set)
    conflicting: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def own_name_for(self, setting: str) -> str | None:
        """The first of the file's own names that may be meant as ``setting``."""
        names = islice(self.own, PROBLEMS)  # comparing strings is slow
        return next((name for name in names if closest(name).meant == setting), None)


def read_setting_sources(
    file: str, document: Document, environ: Mapping[str, str]
) -> SettingSources:
    """What a document and the environment's DATA state.

    Unknown names, foreign words that have no counterpart here and spellings of one setting that
    disagree become ``problems``; keys without effect become ``notes``.
    """
    found = SettingSources(file)
    spoken = [pair for stated in _written(document, found) for pair in _meanings(stated, found)]
    if environ.get("DATA"):
        path = environ["DATA"]
        data = SettingSource(
            name="DATA",
            written=path,
            value=path,
            origin=ENVIRONMENT,
            precedence=Precedence.ENVIRONMENT,
        )
        spoken += _meanings(data, found)
    by_setting: dict[str, list[SettingSource]] = {}
    for setting, stated in spoken:
        by_setting.setdefault(setting, []).append(stated)
    for setting, candidates in by_setting.items():
        _pick_strongest(setting, candidates, found)
    found.conflicting |= found.meant - found.settings.keys()
    return found


def cite(name: str, stated: Mapping[str, SettingSource], settings: object) -> str:
    """A setting and its value as the user spelt them: "parallel.tensor.size=4"."""
    if name in stated:
        return str(stated[name])
    return f"{user_name(name)}={show(attrgetter(name)(settings))}"


def show(value: object, limit: int = 70) -> str:
    """A value as the user would write it, shortened in the middle."""
    text = repr(value)
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"


def _written(document: Document, found: SettingSources) -> Iterator[SettingSource]:
    """Every key of the document that means something here, sections before what is in them."""
    own = {*ALIASES, *SECTIONS, *IGNORED_KEYS}
    for name, value in document.values.items():
        if name in document.imported:
            continue
        if name in own:
            yield from _within(document, (name,), value, found)
        elif name in document.read_names:
            found.own[name] = document.origin((name,))
        else:
            _unknown(document, (name,), value, found)


def _within(
    document: Document, path: Path, value: object, found: SettingSources
) -> Iterator[SettingSource]:
    name = _dotted(path)
    stated = SettingSource(
        name=name,
        written=value,
        value=tuple(value) if isinstance(value, list) else value,
        origin=document.origin(path),
        precedence=Precedence.OVERRIDE
        if _is_overridden(document, path)
        else Precedence.CONFIG_FILE,
    )
    is_section = name in SECTIONS and isinstance(value, dict)
    if name in IMPLIED or (name in ALIASES and not is_section):
        yield stated
    if isinstance(value, dict) and is_section:
        for key, inner in value.items():
            yield from _within(document, (*path, str(key)), inner, found)
    elif name in ALIASES:
        return
    elif name in IGNORED_KEYS:
        _note_ignored_key(stated, found)
    elif name not in SECTIONS:
        _unknown(document, path, value, found)
    elif value is not None:
        found.problems.append(stated.problem(f"must be a dict, such as {_as_dict(stated)}"))
        found.conflicting.update(key for key in all_settings() if key.startswith(f"{name}."))


def _as_dict(stated: SettingSource) -> str:
    """A value given for a section, as the first of its settings that takes it."""
    keys = [key for key in _KEYS if key.startswith(f"{stated.name}.")]
    fields = all_settings()
    for key in keys:
        meaning = ALIASES.get(key)
        if isinstance(stated.value, bool) or key not in map(user_name, fields):
            continue
        meanings = {str(meaning): stated.value}
        try:
            meanings = meaning(stated.value) if callable(meaning) else meanings
        except colossalai_values.UnsupportedValueError:
            continue
        if meanings and all(takes(fields[name], value) for name, value in meanings.items()):
            return f"dict({key.rpartition('.')[2]}={show(stated.written)})"
    return f"dict({keys[0].split('.')[stated.name.count('.') + 1]}=...)"


def _unknown(document: Document, path: Path, value: object, found: SettingSources) -> None:
    """Reports a name that is not a setting; of a section, the keys of which some are known."""
    name, origin = _dotted(path), document.origin(path)
    hint = known(name)
    inner = value if isinstance(value, dict) and not hint else {}
    if any(known(_dotted((*path, str(key)))) for key in inner):
        for key, item in inner.items():
            _unknown(document, (*path, str(key)), item, found)
        return
    if len(found.problems) < PROBLEMS:  # comparing strings is slow
        hint = closest(name)
    _report(found, origin, unknown_setting(name, hint, in_file=origin.file != COMMAND_LINE))
    if hint.meant:
        found.meant.add(hint.meant)


def _dotted(path: Path) -> str:
    return ".".join(part if part.isidentifier() else show(part) for part in path)


def _meanings(stated: SettingSource, found: SettingSources) -> list[tuple[str, SettingSource]]:
    """The settings that one statement of the user's sets."""
    meaning = ALIASES.get(stated.name)
    meanings = [
        (setting, _implied(setting, value, stated))
        for setting, value in IMPLIED.get(stated.name, {}).items()
        if stated.value is not None
    ]
    if isinstance(meaning, str):
        meanings.append((meaning, stated))
    elif callable(meaning):
        try:
            converted = meaning(stated.value)
        except colossalai_values.UnsupportedValueError as error:
            found.problems.append(stated.problem(str(error)))
            found.conflicting.update(one for one in all_settings() if user_name(one) == stated.name)
        else:
            meanings += [(name, replace(stated, value=value)) for name, value in converted.items()]
    return meanings


def _implied(setting: str, value: object, cause: SettingSource) -> SettingSource:
    return SettingSource(
        name=user_name(setting),
        written=value,
        value=value,
        origin=cause.origin,
        precedence=Precedence.IMPLIED,
        remark=f" (implied by {cause.name})",
    )


def _pick_strongest(setting: str, candidates: list[SettingSource], found: SettingSources) -> None:
    """The statement that counts most; a dispute where several count the same and differ."""
    most = max(stated.precedence for stated in candidates)
    first, *others = [stated for stated in candidates if stated.precedence == most]
    found.settings[setting] = first
    for other in others:
        if not _same(first.value, other.value) and most > Precedence.IMPLIED:
            found.problems.append(other.problem(f"conflicts with {first} at {first.origin}"))
            found.conflicting.add(setting)


def _note_ignored_key(stated: SettingSource, found: SettingSources) -> None:
    why = IGNORED_KEYS[stated.name]
    if why.only is not None and not any(_same(stated.value, value) for value in why.only):
        accepted = " or ".join(map(repr, why.only))
        found.problems.append(stated.problem(f"must be {accepted} ({why.reason})"))
    else:
        _report(found, stated.origin, f"{stated.name} is ignored: {why.reason}", note=True)


def _report(found: SettingSources, origin: Origin, message: str, *, note: bool = False) -> None:
    (found.notes if note else found.problems).append(
        Problem(origin.file, origin.line, None, message)
    )


def _is_overridden(document: Document, path: Path) -> bool:
    return any(path[: len(other)] == other for other in document.overridden)


def _same(one: object, other: object) -> bool:
    """Equal, and a bool only to a bool."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
