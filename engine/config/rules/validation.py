"""Rules for the data to validate on."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.rule_context import Finding, RuleContext
from engine.config.sections.data import ENDLESS_TYPES, FILE_TYPES
from engine.config.splits import TRAIN, known_splits


def validation_data_is_stated_once(context: RuleContext) -> Iterator[Finding]:
    """Require either data.validation or data.validation_path, since both make the split
    'validation'."""
    data = context.settings.data
    if data.validation_path is not None and data.validation > 0:
        yield context.error(
            "data.validation",
            f"{context.cite('data.validation', 'data.validation_path')}: both state what to "
            "validate on; remove one of them",
        )


def validation_files_can_be_encoded(context: RuleContext) -> Iterator[Finding]:
    """Require a source of text, images or token shards for data.validation_path: the files have the
    ids of the training data."""
    data, encodable = context.settings.data, (*FILE_TYPES, "images", "tokens")
    if data.validation_path is not None and data.type not in encodable:
        yield context.error(
            "data.validation_path",
            f"{context.cite('data.validation_path')} needs a data.type that reads text, images or "
            f"token shards ({', '.join(encodable)}), not {context.cite('data.type')}; a split of "
            "that source is chosen by eval.split",
        )


def split_exists(context: RuleContext) -> Iterator[Finding]:
    """Require eval.split to be 'train' or 'validation' for sources without further splits."""
    settings = context.settings
    known = known_splits(settings)
    if known and settings.eval.split not in known:
        yield context.error(
            "eval.split",
            f"{context.cite('eval.split')} is not a split of {context.cite('data.type')}; its "
            f"splits: {', '.join(known)}",
        )


def size_is_stated_once(context: RuleContext) -> Iterator[Finding]:
    """Require either eval.samples or eval.tokens, since both set the size of a validation."""
    if context.settings.eval.samples is not None and context.settings.eval.tokens is not None:
        yield context.error(
            "eval.tokens",
            f"{context.cite('eval.samples', 'eval.tokens')}: both state the size of a validation; "
            "remove one of them",
        )


def whole_split_is_finite(context: RuleContext) -> Iterator[Finding]:
    """Require a number of samples to validate on an endless split."""
    settings = context.settings
    endless = settings.data.type in ENDLESS_TYPES and settings.eval.split == TRAIN
    if endless and settings.eval.samples == "all":
        yield context.error(
            "eval.samples",
            f"{context.cite('eval.samples')}: the split 'train' of {context.cite('data.type')} is "
            "endless; set a number of samples",
        )


RULES = (
    validation_data_is_stated_once,
    validation_files_can_be_encoded,
    split_exists,
    size_is_stated_once,
    whole_split_is_finite,
)
