"""All rules: every file in ``engine/config/rules`` lists its own in ``RULES``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from engine import discover
from engine.config.check import InvalidSettingError
from engine.config.rule_context import Finding, RuleContext

Rule = Callable[[RuleContext], Iterator[Finding]]
RULES_PACKAGE = "engine.config.rules"


def all_rules() -> list[Rule]:
    """The rules there are."""
    modules = [discover.load(RULES_PACKAGE, name) for name in discover.module_names(RULES_PACKAGE)]
    return [rule for module in modules for rule in module.RULES]


def run_rules(context: RuleContext) -> Iterator[Finding]:
    """What all rules find. A rule about values that are not known is silent."""
    for rule in all_rules():
        try:
            yield from rule(context)
        except InvalidSettingError:
            continue
