"""Hints for unknown names: the settings that a name probably means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from engine.config.aliases import ALIASES
from engine.config.ignored_keys import IGNORED_KEYS
from engine.config.other_trainers import AMBIGUOUS, EXPLAINED, SYNONYMS
from engine.config.schema import all_settings, user_name

LISTED = 4  # settings of one name, such as eval.every, that fit on a line
COMPARED = 40  # characters; comparing strings is slow
SAME_SECTION, ANYWHERE = 0.7, 0.8  # minimum similarity, from 0 to 1

_USER_NAMES = {name: user_name(name) for name in all_settings()}
_OWN = {shown: name for name, shown in _USER_NAMES.items()}
_SECTIONS = sorted({key.rpartition(".")[0] for key in ALIASES if "." in key})


@dataclass(frozen=True)
class Hint:
    """A hint for an unknown name; without ``settings`` and ``why`` there is none."""

    settings: tuple[str, ...] = ()
    """In the user's spelling, with the value where the name implies one (``precision='bf16'``)."""
    why: str = ""
    """The reason why there is no such setting."""

    def __bool__(self) -> bool:
        return bool(self.settings or self.why)

    @property
    def meant(self) -> frozenset[str]:
        """The names of ``settings`` in the schema, without values and without unknown names."""
        names = (setting.partition("=")[0] for setting in self.settings)
        return frozenset(_OWN[name] for name in names if name in _OWN)


def fold(name: str) -> str:
    """Normalise a name: ignore case, dashes, underscores and spaces. Dots separate sections."""
    return re.sub(r"[-_ ]", "", name.casefold())


def known(name: str) -> Hint:
    """Return the hint for a name that is known exactly: a setting's name in this or another
    section, or its name in another trainer."""
    whole = fold(name)
    section, _, last = whole.rpartition(".")
    if last in _AMBIGUOUS:
        return Hint(_AMBIGUOUS[last])
    if whole in _BY_WHOLE:
        return Hint((_BY_WHOLE[whole],))
    for key in (whole, last):
        if key in _EXPLAINED:
            return Hint(why=_EXPLAINED[key])
        if key in _SYNONYMS:
            return Hint((_SYNONYMS[key],))
    for names in (_BY_LAST, _FOREIGN_BY_LAST):
        settings = names.get(last, ())
        if section and section in map(fold, settings):
            continue
        if settings:
            return Hint(tuple(settings) if len(settings) <= LISTED else ())
    return Hint(why=_NO_EFFECT.get(last, ""))


def closest(name: str) -> Hint:
    """Return the hint for a name that is known exactly or similar to a known one."""
    return known(name) or _similar(name)


def _similar(name: str) -> Hint:
    """Return the hint for a name that is spelt like a setting of its section, or else like any
    known name."""
    section, _, last = fold(name)[:COMPARED].rpartition(".")
    siblings = {
        key.rpartition(".")[2]: target
        for key, target in _BY_WHOLE.items()
        if key.rpartition(".")[0] == section
    }
    everywhere = {**_SYNONYMS, **{key: settings[0] for key, settings in _BY_LAST.items()}}
    for names, likeness in ((siblings, SAME_SECTION), (everywhere, ANYWHERE)):
        near = get_close_matches(last, names, n=1, cutoff=likeness)
        if near:
            return Hint((names[near[0]],))
    return Hint()


def names_elsewhere(setting: str) -> frozenset[str]:
    """Return the folded names of a setting in other trainers."""
    return frozenset(
        name for name, target in _SYNONYMS.items() if target.partition("=")[0] == setting
    )


def unknown_setting(name: str, hint: Hint, *, in_file: bool = True) -> str:
    """Format the message for a name that is not a setting. ``in_file``: not on the command line."""
    if hint.why:
        return f"{name} is not a setting: {hint.why}"
    if not hint.settings:
        return f"{name} is not a setting; cuboid settings lists them"
    *first, last = hint.settings
    meant = f"{', '.join(first)} or {last}" if first else last
    elsewhere = last.partition("=")[0].rpartition(".")[0] != name.rpartition(".")[0]
    if in_file and elsewhere and not first:
        meant += f", as in {assignment(last)}"
    return f"{name} is not a setting; did you mean {meant}?"


def assignment(setting: str) -> str:
    """Format the assignment of a setting in a file: ``optimizer = dict(lr=...)`` for
    ``optimizer.lr``."""
    name, _, value = setting.partition("=")
    first, *inner = name.split(".")
    text = value or "..."
    for key in reversed(inner):
        text = f"dict({key}={text})"
    return f"{first} = {text}"


def _by_name(table: Mapping[str, str]) -> dict[str, str]:
    """Invert a table of space-separated names: folded name -> key."""
    return {fold(name): meaning for meaning, names in table.items() for name in names.split()}


def _by_last(targets: Mapping[str, str]) -> dict[str, list[str]]:
    """Map the last part of each name, folded, to its settings; a top-level setting takes
    precedence."""
    by_last: dict[str, list[str]] = {}
    for name, target in targets.items():
        settings = by_last.setdefault(fold(name.rpartition(".")[2]), [])
        if target not in settings:
            settings.append(target)
    return {
        last: [target for target in settings if "." not in target][:1] or settings
        for last, settings in by_last.items()
    }


def _targets() -> dict[str, str]:
    """Map each alias to the setting's name for users, or to itself if it has a converter."""
    return {
        key: _USER_NAMES.get(meaning, key) if isinstance(meaning, str) else key
        for key, meaning in ALIASES.items()
        if key not in _OWN
    }


_AMBIGUOUS = {fold(name): settings for name, settings in AMBIGUOUS.items()}
_EXPLAINED, _SYNONYMS = _by_name(EXPLAINED), _by_name(SYNONYMS)
_BY_WHOLE = {fold(name): name for name in (*_targets(), *_SECTIONS, *_OWN)}
_BY_LAST = _by_last({name: name for name in _OWN})
_FOREIGN_BY_LAST = _by_last(_targets())
_NO_EFFECT = {fold(name.rpartition(".")[2]): why.reason for name, why in IGNORED_KEYS.items()}
