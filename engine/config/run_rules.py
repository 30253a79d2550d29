"""All rules: each module in ``engine/config/rules`` lists its own in ``RULES``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from engine import discover
from engine.config.check import InvalidSettingError
from engine.config.rule_context import Finding, RuleContext

Rule = Callable[[RuleContext], Iterator[Finding]]
RULES_PACKAGE = "engine.config.rules"


def all_rules() -> list[Rule]:
    """List the rules of all modules in ``engine/config/rules``."""
    modules = [discover.load(RULES_PACKAGE, name) for name in discover.module_names(RULES_PACKAGE)]
    return [rule for module in modules for rule in module.RULES]


def run_rules(context: RuleContext) -> Iterator[Finding]:
    """Yield the findings of all rules; a rule that reads an invalid setting yields no more."""
    for rule in all_rules():
        try:
            yield from rule(context)
        except InvalidSettingError:
            continue
