"""Rules for checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.rule_context import Finding, RuleContext
from engine.config.value_hints import nearest_multiples


def checkpoints_follow_a_validation(context: RuleContext) -> Iterator[Finding]:
    """Note that some checkpoints cannot be the best, as checkpoint.every is no multiple of
    eval.every. Only a checkpoint saved right after a validation has a loss to compare."""
    settings = context.settings
    saves, validates = settings.checkpoint.every, settings.eval.every
    if settings.checkpoint.best and saves and validates and saves % validates:
        yield context.note(
            "checkpoint.every",
            f"{context.cite('checkpoint.every')} is not a multiple of "
            f"{context.cite('eval.every')}: a checkpoint saved without a validation cannot be the "
            f"best; nearest: {nearest_multiples(saves, validates)}",
        )


RULES = (checkpoints_follow_a_validation,)
