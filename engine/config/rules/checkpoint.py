"""Checkpoints: which of them can be the best."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.rule_context import Finding, RuleContext


def checkpoints_without_a_loss(facts: RuleContext) -> Iterator[Finding]:
    """The best of them is the best of those that were written right after a validation."""
    settings = facts.settings
    saves, validates = settings.checkpoint.every, settings.eval.every
    if settings.checkpoint.best and saves and validates and saves % validates:
        yield facts.note(
            "checkpoint.every",
            f"{facts.cite('checkpoint.every')} is not a multiple of {facts.cite('eval.every')}: "
            "checkpoints without a validation are never the best",
        )


RULES = (checkpoints_without_a_loss,)
