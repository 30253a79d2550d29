"""The splits of the data: their names, and which ones a config leaves without samples.

Every source has the split 'train', and 'validation' if something is held out for it. Some offer
further splits, whose names are known when the data is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.config.sections.data import FILE_TYPES

if TYPE_CHECKING:
    from engine.config.schema import Settings

TRAIN, VALIDATION = "train", "validation"


def known_splits(settings: Settings) -> tuple[str, ...]:
    """Return the names of the splits of the data; () if they are only known when the data is
    opened."""
    plain = settings.data.type in (*FILE_TYPES, "tokens", "synthetic")
    return (TRAIN, VALIDATION) if plain else ()


def holds_out(settings: Settings) -> bool:
    """Return whether the config provides for a split 'validation'."""
    return settings.data.validation > 0 or settings.data.validation_path is not None


def can_validate(settings: Settings) -> bool:
    """Return whether the split to validate on has samples, as far as the config determines it."""
    return settings.eval.split != VALIDATION or holds_out(settings)
