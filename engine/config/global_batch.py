"""Derives BATCH_SIZE and gradient_accumulation from GLOBAL_BATCH_SIZE and the number of ranks.

GLOBAL_BATCH_SIZE = BATCH_SIZE x gradient_accumulation x data-parallel ranks. A config that states
it makes the same update on any number of ranks that divides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from engine.config.derived import imply, is_count
from engine.config.resolve import SettingSources
from engine.config.schema import user_name
from engine.config.value_hints import nearest_multiples
from engine.formatting import plural

FACTORS = ("batch_size", "gradient_accumulation")
"""The settings that follow from GLOBAL_BATCH_SIZE."""
ROUNDS = 1000
"""Numbers of accumulation rounds that are tried for a message."""


def gpus_of_batch(sources: SettingSources) -> int | None:
    """Return the number of GPUs on which GLOBAL_BATCH_SIZE, BATCH_SIZE and gradient_accumulation
    agree; None if they are not all stated, or agree on none."""
    total, *factors = (_count(sources, name) for name in ("global_batch_size", *FACTORS))
    if not total or not all(factors) or _weaker_factor(sources):
        return None
    ranks, rest = divmod(total, prod(n for n in factors if n))
    per_copy = _gpus_per_model_copy(sources)
    return None if rest or per_copy is None else ranks * per_copy


def derive_batch(sources: SettingSources, gpus: int | None) -> None:
    """Add BATCH_SIZE and gradient_accumulation if GLOBAL_BATCH_SIZE is stated.

    If only one of the two is stated, it determines the other; if neither is, gradient_accumulation
    is 1. A GLOBAL_BATCH_SIZE that does not divide evenly, or that contradicts both, becomes a
    problem. If ``gpus`` is None, it is the number of GPUs of one copy of the model.
    """
    settings = sources.settings
    stated = settings.get("global_batch_size")
    if stated is None or stated.value is None:
        return
    weaker = _weaker_factor(sources)
    if weaker:
        del settings[weaker]
    missing = {name for name in FACTORS if name not in settings}
    ranks = _data_parallel_ranks(sources, gpus)
    total, *factors = (_count(sources, name) for name in ("global_batch_size", *FACTORS))
    if ranks is None or not total or any(n is None for n in factors):
        sources.conflicting |= missing  # the problem of another setting is reported
        return
    batch, rounds = factors
    if batch and rounds:
        if batch * rounds * ranks != total:
            sources.problems.append(stated.problem(_disagreement(sources, ranks)))
        return
    micro_batches = None if batch else _count(sources, "num_micro_batches")
    causes = [name for name in FACTORS if name in settings]
    causes += ["num_micro_batches"] if micro_batches and micro_batches > 1 else []
    unit = prod(_count(sources, name) or 1 for name in causes) * ranks
    if total % unit:
        remedy = f"nearest: {nearest_multiples(total, unit)}"
        if batch and (smaller := _dividing_batch(sources, total, batch, ranks)):
            remedy += f"; or set {sources.settings['batch_size'].name}={smaller}"
        sources.problems.append(
            stated.problem(f"is not a multiple of {_product(sources, causes, ranks)}; {remedy}")
        )
        sources.conflicting |= missing
        return
    if not batch:
        value = total // ((rounds or 1) * ranks)
        imply(sources, "batch_size", stated, value, f" ({stated})", user_name("batch_size"))
    else:
        imply(sources, "gradient_accumulation", stated, total // unit, f" ({stated})")


def _weaker_factor(sources: SettingSources) -> str | None:
    """Return the factor, BATCH_SIZE or gradient_accumulation, to replace if GLOBAL_BATCH_SIZE and
    both factors are stated, or None. The command line outranks the file, so GLOBAL_BATCH_SIZE or
    one factor on the command line changes a factor that the file states."""
    names = ("global_batch_size", *FACTORS)
    if not all(_count(sources, name) for name in names):
        return None
    strength = {name: sources.settings[name].precedence for name in names}
    weaker = min(reversed(FACTORS), key=lambda name: strength[name])
    return weaker if strength[weaker] < max(strength.values()) else None


def _dividing_batch(sources: SettingSources, total: int, batch: int, ranks: int) -> int | None:
    """Return the largest BATCH_SIZE up to ``batch`` with which ``total`` samples divide evenly over
    the ranks; None if all of them need many accumulation rounds."""
    samples, rest = divmod(total, ranks)
    fewest = -(-samples // batch)
    sizes = (samples // rounds for rounds in range(fewest, fewest + ROUNDS) if not samples % rounds)
    parts = _count(sources, "num_micro_batches") or 1
    return None if rest else next((size for size in sizes if size and not size % parts), None)


def _disagreement(sources: SettingSources, ranks: int) -> str:
    removed = " or ".join(sources.settings[name].name for name in FACTORS)
    return (
        f"differs from {_product(sources, FACTORS, ranks)}; correct one of them, or remove "
        f"{removed}, which then follows"
    )


def _product(sources: SettingSources, names: Sequence[str], ranks: int) -> str:
    """Format a product of settings and ranks: "BATCH_SIZE=8 x 2 data-parallel ranks = 16"."""
    parts = [str(sources.settings[name]) for name in names]
    if ranks > 1 or not parts:
        parts.append(plural(ranks, "data-parallel rank"))
    value = prod(_count(sources, name) or 1 for name in names) * ranks
    return f"{' x '.join(parts)} = {value}" if len(parts) > 1 else parts[0]


def _data_parallel_ranks(sources: SettingSources, gpus: int | None) -> int | None:
    """Return the number of data-parallel ranks on ``gpus``; None if the layout does not fit."""
    per_copy = _gpus_per_model_copy(sources)
    if gpus is None or per_copy is None:
        return None if per_copy is None else 1
    ranks, rest = divmod(gpus, per_copy)
    return None if rest else ranks


def _gpus_per_model_copy(sources: SettingSources) -> int | None:
    """Return the GPUs of one copy of the model; None if a setting is invalid."""
    sizes = [_count(sources, name) for name in ("tensor_parallel", "pipeline")]
    return None if None in sizes else prod(size or 1 for size in sizes)


def _count(sources: SettingSources, name: str) -> int | None:
    """Return the value of a count, 0 if it is not stated, None if it is invalid."""
    stated = sources.settings.get(name)
    if name in sources.conflicting:
        return None
    if stated is None:
        return 0
    return stated.value if is_count(stated.value) else None
