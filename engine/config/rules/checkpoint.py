"""Rules for the intervals of checkpoints and validations."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from engine.config.rule_context import Finding, RuleContext
from engine.config.sections.data import ENDLESS_TYPES
from engine.config.value_hints import nearest_multiples


def checkpoints_follow_a_validation(context: RuleContext) -> Iterator[Finding]:
    """Note that some checkpoints cannot be the best, as the checkpoint interval is no multiple of
    the validation interval in the same unit. Only a checkpoint saved right after a validation has a
    loss to compare."""
    settings = context.settings
    if not settings.checkpoint.best or settings.checkpoint.best_by != "validation":
        return
    for unit in ("every", "epochs"):
        saves, validates = getattr(settings.checkpoint, unit), getattr(settings.eval, unit)
        if saves and validates and Fraction(repr(saves)) % Fraction(repr(validates)):
            yield context.note(
                f"checkpoint.{unit}",
                f"{context.cite(f'checkpoint.{unit}')} is not a multiple of "
                f"{context.cite(f'eval.{unit}')}: a checkpoint saved without a validation cannot "
                f"be the best{_nearest(saves, validates)}",
            )


def _nearest(saves: float, validates: float) -> str:
    is_count = isinstance(saves, int) and isinstance(validates, int)
    return f"; nearest: {nearest_multiples(int(saves), int(validates))}" if is_count else ""


def intervals_in_epochs_need_epochs(context: RuleContext) -> Iterator[Finding]:
    """Require intervals in steps for synthetic data, which has no epochs."""
    if context.settings.data.type not in ENDLESS_TYPES:
        return
    for name in ("eval", "checkpoint"):
        if getattr(context.settings, name).epochs is not None:
            yield context.error(
                f"{name}.epochs",
                f"{context.cite(f'{name}.epochs')} needs data with epochs, but "
                f"{context.cite('data.type')} is endless; use {name}.every",
            )


RULES = (checkpoints_follow_a_validation, intervals_in_epochs_need_epochs)
