"""The number of token ids of a config's data, before a run reads it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine import discover
from engine.data import tokenize, tokenizer
from engine.data.source import SourceRequest
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.config.schema import Settings


def vocabulary_size(settings: Settings, cache: Path) -> int:
    """Return the number of token ids of the data: the source's, if it has ids of its own, otherwise
    the tokenizer's. If the number depends on the text, the text is read, unless its tokens are
    cached.

    ``cache``: the folder for tokens, unless data.cache names one. Raises UserError if the text
    cannot be read on this machine, or the source has no vocabulary.
    """
    source = discover.load("engine.data.sources", settings.data.type)
    request = SourceRequest.of(settings, cache)
    if hasattr(source, "vocabulary_size"):
        found: int = source.vocabulary_size(request)
        return found
    fixed = tokenizer.fixed_size(settings.data.tokenizer, settings.data.tokenizer_path)
    if fixed is not None:
        return fixed
    if not hasattr(source, "open_documents"):
        raise UserError(
            f"data.type={settings.data.type!r} is not text; set model.vocab_size to a number"
        )
    return tokenize.vocabulary_size(source.open_documents(request), request)
