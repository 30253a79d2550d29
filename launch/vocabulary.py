"""Determines model.vocab_size='data' from the data files on this machine, before a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engine.data.source import default_cache
from engine.errors import UserError
from engine.plan import Plan


def size_on_this_machine(plan: Plan, environ: Mapping[str, str]) -> int | UserError:
    """Return the number of token ids of the plan's data, or the reason why it is unknown here."""
    from engine.data.vocabulary.size import vocabulary_size  # numpy: only if data has to be read

    try:
        return vocabulary_size(plan.settings, default_cache(environ))
    except UserError as error:
        return error


def with_size(plan: Plan, size: int | UserError) -> Plan:
    """Return the plan with the result of ``size_on_this_machine``: its vocabulary, or a note that
    it is unknown. Raises ConfigError if a rule rejects that size."""
    if not isinstance(size, UserError):
        return plan.with_vocabulary(size)
    return replace(plan, notes=(*plan.notes, unknown_size(plan, size)))


def unknown_size(plan: Plan, reason: UserError) -> str:
    """Return the note on a vocabulary whose size is unknown for a ``reason``."""
    return (
        f"{plan.cite('model.vocab_size')} is not determined until the data is read ({reason}); "
        f"parameters and memory are for {plan.settings.model.vocab_size:,} ids"
    )
