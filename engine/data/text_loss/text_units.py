"""Counts the bytes and characters of the text that targets encode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.data.images.codebook import Codebook
from models.parallel.targets import IGNORED

if TYPE_CHECKING:
    from engine.data.tokenizer import Tokenizer


class TextUnits:
    """Counts bytes and characters of targets, as ``TextLoss`` defines them."""

    def __init__(self, tokenizer: Tokenizer | Codebook | None) -> None:
        """Without a tokenizer of text all counts of text are 0."""
        self._tokenizer = text = None if isinstance(tokenizer, Codebook) else tokenizer
        self._bytes = None if text is None else torch.from_numpy(text.byte_counts())

    @property
    def has_text(self) -> bool:
        """Return whether the tokens encode text."""
        return self._tokenizer is not None

    def count(self, targets: Tensor) -> Tensor:
        """Count the targets [samples, seq_len] that are not IGNORED, and the UTF-8 bytes and the
        characters that these targets encode. Returns int64 [3]."""
        samples = [row[row != IGNORED] for row in targets]
        counts = [sum(map(len, samples)), 0, 0]
        if self._tokenizer is not None and self._bytes is not None:
            counts[1] = sum(int(self._bytes[ids].sum()) for ids in samples)
            counts[2] = sum(len(self._tokenizer.decode(ids.numpy())) for ids in samples)
        return torch.tensor(counts)
