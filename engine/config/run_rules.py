"""All rules: every file in ``engine/config/rules`` lists its own in ``RULES``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

from engine import discover
from engine.config.check import Unknown
from engine.config.rule_context import Facts, Finding

Rule = Callable[[Facts], Iterator[Finding]]
ROOM = "engine.config.rules"


def rules() -> list[Rule]:
    """The rules there are."""
    rooms = [importlib.import_module(f"{ROOM}.{name}") for name in discover.names(ROOM)]
    return [rule for room in rooms for rule in room.RULES]


def judge(facts: Facts) -> Iterator[Finding]:
    """What all rules find. A rule about values that are not known is silent."""
    for rule in rules():
        try:
            yield from rule(facts)
        except Unknown:
            continue
