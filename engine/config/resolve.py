"""From the user's assignments to settings: aliases, precedence and conflicts, with positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import islice
from operator import attrgetter

from engine.config import colossalai_values
from engine.config.aliases import ALIASES, IMPLIED
from engine.config.fields import takes
from engine.config.ignored_keys import IGNORED_KEYS
from engine.config.language.limits import PROBLEMS
from engine.config.name_hints import closest, known, unknown_setting
from engine.config.schema import all_settings, user_name
from engine.config.values import COMMAND_LINE, Document, Origin, Path
from engine.errors import Problem

_KEYS = [*ALIASES, *IGNORED_KEYS]
SECTIONS = {key.rsplit(".", n)[0] for key in _KEYS for n in range(1, key.count(".") + 1)}
ENVIRONMENT = Origin("environment", 0, 0)


class Precedence(IntEnum):
    """Precedence of an assignment: of several to one setting, the highest wins."""

    IMPLIED = 0
    CONFIG_FILE = 1
    ENVIRONMENT = 2
    OVERRIDE = 3


@dataclass(frozen=True, kw_only=True)
class SettingSource:
    """One assignment to a setting, with its position."""

    name: str
    """In the user's spelling."""
    written: object
    """The user's value."""
    value: object
    """``written`` as a value of the schema."""
    origin: Origin
    precedence: Precedence = Precedence.CONFIG_FILE
    remark: str = ""
    """Text after the value in messages, such as " of gpt2_small"."""

    def __str__(self) -> str:
        return f"{self.name}={show(self.written)}{self.remark}"

    def problem(self, message: str) -> Problem:
        """Make a problem at this position: "NAME=VALUE message"."""
        return self.origin.problem(f"{self} {message}")


@dataclass
class SettingSources:
    """All assignments of a config, and the problems with them."""

    file: str
    settings: dict[str, SettingSource] = field(default_factory=dict)
    """The source of each stated setting, by its name in the schema."""
    own: dict[str, Origin] = field(default_factory=dict)
    """Names that the file defines for its own use, and their positions."""
    meant: set[str] = field(default_factory=set)
    """Settings that unknown names probably mean; they are not reported as missing."""
    conflicting: set[str] = field(default_factory=set)
    """Settings without a reliable value, whose problem is already reported."""
    undetermined: set[str] = field(default_factory=set)
    """Settings whose value is found when the data is read; until then they have their default, and
    rules skip them."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def own_name_for(self, setting: str) -> str | None:
        """Return the first of the file's own names that probably means ``setting``."""
        names = islice(self.own, PROBLEMS)  # comparing strings is slow
        return next((name for name in names if setting in closest(name).meant), None)


def read_setting_sources(
    file: str, document: Document, environ: Mapping[str, str]
) -> SettingSources:
    """Collect the assignments of a document and of the environment variable DATA.

    Unknown names, values that are not supported and conflicting assignments become ``problems``;
    keys without effect become ``notes``.
    """
    sources = SettingSources(file)
    assignments = [
        pair for source in _written(document, sources) for pair in _meanings(source, sources)
    ]
    if environ.get("DATA"):
        path = environ["DATA"]
        data = SettingSource(
            name="DATA",
            written=path,
            value=path,
            origin=ENVIRONMENT,
            precedence=Precedence.ENVIRONMENT,
        )
        assignments += _meanings(data, sources)
    by_setting: dict[str, list[SettingSource]] = {}
    for setting, source in assignments:
        by_setting.setdefault(setting, []).append(source)
    for setting, stated in by_setting.items():
        _pick_strongest(setting, stated, sources)
    sources.conflicting |= sources.meant - sources.settings.keys()
    return sources


def cite(name: str, sources: Mapping[str, SettingSource], settings: object) -> str:
    """Format a setting and its value in the user's spelling: "parallel.tensor.size=4"."""
    if name in sources:
        return str(sources[name])
    return f"{user_name(name)}={show(attrgetter(name)(settings))}"


def show(value: object, limit: int = 70) -> str:
    """Format a value as in a config file, shortened in the middle."""
    text = repr(value)
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"


def _written(document: Document, sources: SettingSources) -> Iterator[SettingSource]:
    """Yield every assignment to a setting in the document, a section before its keys."""
    setting_names = {*ALIASES, *SECTIONS, *IGNORED_KEYS}
    for name, value in document.values.items():
        if name in document.imported:
            continue
        if name in setting_names:
            yield from _within(document, (name,), value, sources)
        elif name in document.read_names:
            sources.own[name] = document.origin((name,))
        else:
            _unknown(document, (name,), value, sources)


def _within(
    document: Document, path: Path, value: object, sources: SettingSources
) -> Iterator[SettingSource]:
    name = _dotted(path)
    source = SettingSource(
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
        yield source
    if isinstance(value, dict) and is_section:
        for key, inner in value.items():
            yield from _within(document, (*path, str(key)), inner, sources)
    elif name in ALIASES:
        return
    elif name in IGNORED_KEYS:
        _note_ignored_key(source, sources)
    elif name not in SECTIONS:
        _unknown(document, path, value, sources)
    elif value is not None:
        sources.problems.append(source.problem(f"must be a dict, such as {_as_dict(source)}"))
        sources.conflicting.update(key for key in all_settings() if key.startswith(f"{name}."))


def _as_dict(source: SettingSource) -> str:
    """Format a value that was given for a section as a dict with the first setting of the section
    that accepts the value."""
    keys = [key for key in _KEYS if key.startswith(f"{source.name}.")]
    fields = all_settings()
    for key in keys:
        meaning = ALIASES.get(key)
        if isinstance(source.value, bool) or key not in map(user_name, fields):
            continue
        meanings = {str(meaning): source.value}
        try:
            meanings = meaning(source.value) if callable(meaning) else meanings
        except colossalai_values.UnsupportedValueError:
            continue
        if meanings and all(takes(fields[name], value) for name, value in meanings.items()):
            return f"dict({key.rpartition('.')[2]}={show(source.written)})"
    return f"dict({keys[0].split('.')[source.name.count('.') + 1]}=...)"


def _unknown(document: Document, path: Path, value: object, sources: SettingSources) -> None:
    """Report a name that is not a setting. For a section without a hint of its own, report its keys
    instead if some of them have hints."""
    name, origin = _dotted(path), document.origin(path)
    hint = known(name)
    inner = value if isinstance(value, dict) and not hint else {}
    if any(known(_dotted((*path, str(key)))) for key in inner):
        for key, item in inner.items():
            _unknown(document, (*path, str(key)), item, sources)
        return
    if len(sources.problems) < PROBLEMS:  # comparing strings is slow
        hint = closest(name)
    _report(sources, origin, unknown_setting(name, hint, in_file=origin.file != COMMAND_LINE))
    sources.meant |= hint.meant


def _dotted(path: Path) -> str:
    return ".".join(part if part.isidentifier() else show(part) for part in path)


def _meanings(source: SettingSource, sources: SettingSources) -> list[tuple[str, SettingSource]]:
    """Return the settings that one assignment sets, by the schema's names."""
    meaning = ALIASES.get(source.name)
    meanings = [
        (setting, _implied(setting, value, source))
        for setting, value in IMPLIED.get(source.name, {}).items()
        if source.value is not None
    ]
    if isinstance(meaning, str):
        meanings.append((meaning, source))
    elif callable(meaning):
        try:
            converted = meaning(source.value)
        except colossalai_values.UnsupportedValueError as error:
            sources.problems.append(source.problem(str(error)))
            sources.conflicting.update(
                key for key in all_settings() if user_name(key) == source.name
            )
        else:
            meanings += [
                (name, _converted(name, value, source)) for name, value in converted.items()
            ]
    return meanings


def _converted(setting: str, value: object, source: SettingSource) -> SettingSource:
    if isinstance(value, colossalai_values.Implied):
        return _implied(setting, value.value, source)
    return replace(source, value=value)


def _implied(setting: str, value: object, cause: SettingSource) -> SettingSource:
    return SettingSource(
        name=user_name(setting),
        written=value,
        value=value,
        origin=cause.origin,
        precedence=Precedence.IMPLIED,
        remark=f" (implied by {cause.name})",
    )


def _pick_strongest(setting: str, stated: list[SettingSource], sources: SettingSources) -> None:
    """Use the assignment with the highest precedence; report different values of equal
    precedence."""
    most = max(source.precedence for source in stated)
    first, *others = [source for source in stated if source.precedence == most]
    sources.settings[setting] = first
    for other in others:
        if not _same(first.value, other.value) and most > Precedence.IMPLIED:
            sources.problems.append(other.problem(f"conflicts with {first} at {first.origin}"))
            sources.conflicting.add(setting)


def _note_ignored_key(source: SettingSource, sources: SettingSources) -> None:
    why = IGNORED_KEYS[source.name]
    if why.only is not None and not any(_same(source.value, value) for value in why.only):
        accepted = " or ".join(map(repr, why.only))
        sources.problems.append(source.problem(f"must be {accepted} ({why.reason})"))
    else:
        _report(sources, source.origin, f"{source.name} is ignored: {why.reason}", note=True)


def _report(sources: SettingSources, origin: Origin, message: str, *, note: bool = False) -> None:
    (sources.notes if note else sources.problems).append(origin.problem(message))


def _is_overridden(document: Document, path: Path) -> bool:
    return any(path[: len(other)] == other for other in document.overridden)


def _same(value: object, other: object) -> bool:
    """Return whether two values are equal; a bool only equals a bool."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
