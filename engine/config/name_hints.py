"""Hints: the setting that an unknown name may stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from engine.config.aliases import ALIASES
from engine.config.ignored_keys import IGNORED_KEYS
from engine.config.other_trainers import EXPLAINED, SYNONYMS
from engine.config.schema import all_settings, user_name

LISTED = 4  # settings of one name, such as eval.every, that fit on a line
COMPARED = 40  # characters; comparing strings is slow
SAME_SECTION, ANYWHERE = 0.7, 0.8  # least likeness, from 0 to 1

_USER_NAMES = {name: user_name(name) for name in all_settings()}
_OWN = {shown: name for name, shown in _USER_NAMES.items()}
_SECTIONS = sorted({key.rpartition(".")[0] for key in ALIASES if "." in key})


@dataclass(frozen=True)
class Hint:
    """``settings`` by their names for the user, with the value where only one is meant
    (``precision='bf16'``); or ``why`` the name is no setting. Without both, there is no hint."""

    settings: tuple[str, ...] = ()
    why: str = ""

    def __bool__(self) -> bool:
        return bool(self.settings or self.why)

    @property
    def meant(self) -> str | None:
        """The one setting that is meant, by our name; None where several or none are."""
        if len(self.settings) != 1:
            return None
        return _OWN.get(self.settings[0].partition("=")[0])


def fold(name: str) -> str:
    """A name without what is not heard: case, dashes, underscores. Dots separate sections."""
    return re.sub(r"[-_ ]", "", name.casefold())


def known(name: str) -> Hint:
    """The hint for a name that a setting has, in this section or another, here or elsewhere."""
    whole = fold(name)
    section, _, last = whole.rpartition(".")
    if whole in _BY_WHOLE:
        return Hint((_BY_WHOLE[whole],))
    for key in (whole, last):
        if key in _EXPLAINED:
            return Hint(why=_EXPLAINED[key])
        if key in _SYNONYMS:
            return Hint((_SYNONYMS[key],))
    for names in (_BY_LAST, _FOREIGN_BY_LAST):
        found = names.get(last, ())
        if section and section in map(fold, found):
            found = ()
        if found:
            return Hint(tuple(found) if len(found) <= LISTED else ())
    return Hint(why=_NO_EFFECT.get(last, ""))


def closest(name: str) -> Hint:
    """The hint for a name, known or only similar to a known one."""
    return known(name) or _similar(name)


def _similar(name: str) -> Hint:
    """The hint for a name that is spelt like a setting of its section, else like any name."""
    section, _, last = fold(name)[:COMPARED].rpartition(".")
    siblings = {
        key.rpartition(".")[2]: target
        for key, target in _BY_WHOLE.items()
        if key.rpartition(".")[0] == section
    }
    everywhere = {**_SYNONYMS, **{key: found[0] for key, found in _BY_LAST.items()}}
    for names, likeness in ((siblings, SAME_SECTION), (everywhere, ANYWHERE)):
        near = get_close_matches(last, names, n=1, cutoff=likeness)
        if near:
            return Hint((names[near[0]],))
    return Hint()


def names_elsewhere(setting: str) -> frozenset[str]:
    """The names of a setting in other trainers, folded."""
    return frozenset(
        name for name, target in _SYNONYMS.items() if target.partition("=")[0] == setting
    )


def unknown_setting(name: str, hint: Hint, *, in_file: bool = True) -> str:
    """The message for a name that is not a setting; ``in_file``: not on the command line."""
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
    """How a file states a setting: ``optimizer = dict(lr=...)`` for ``optimizer.lr``."""
    name, _, value = setting.partition("=")
    first, *inner = name.split(".")
    text = value or "..."
    for key in reversed(inner):
        text = f"dict({key}={text})"
    return f"{first} = {text}"


def _by_name(table: Mapping[str, str]) -> dict[str, str]:
    return {fold(name): meaning for meaning, names in table.items() for name in names.split()}


def _by_last(targets: Mapping[str, str]) -> dict[str, list[str]]:
    """Last part of a name, folded -> the settings; only one that stands outside of sections."""
    found: dict[str, list[str]] = {}
    for name, target in targets.items():
        same = found.setdefault(fold(name.rpartition(".")[2]), [])
        if target not in same:
            same.append(target)
    return {
        last: [target for target in same if "." not in target][:1] or same
        for last, same in found.items()
    }


def _targets() -> dict[str, str]:
    """Spelling in Colossal-AI's files -> our name for the user, or itself where it is converted."""
    return {
        key: _USER_NAMES.get(meaning, key) if isinstance(meaning, str) else key
        for key, meaning in ALIASES.items()
        if key not in _OWN
    }


_EXPLAINED, _SYNONYMS = _by_name(EXPLAINED), _by_name(SYNONYMS)
_BY_WHOLE = {fold(name): name for name in (*_targets(), *_SECTIONS, *_OWN)}
_BY_LAST = _by_last({name: name for name in _OWN})
_FOREIGN_BY_LAST = _by_last(_targets())
_NO_EFFECT = {fold(name.rpartition(".")[2]): why.reason for name, why in IGNORED_KEYS.items()}
