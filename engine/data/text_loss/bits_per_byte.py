"""A loss per token, and per unit of the text that the tokens encode. No torch.

Losses of models with other tokenizers can only be compared per unit of text. Two units are named:
UTF-8 bytes, and characters as Languini Kitchen counts them (there they are called bytes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """The mean loss of targets, in nats."""

    loss: float
    """Mean over the targets."""
    targets: int
    """The number of targets."""
    bytes: int | None = None
    """UTF-8 bytes of the targets; None if tokens have no text."""
    characters: int | None = None
    """Characters (code points) of the decoded targets, decoded sample by sample: a character that
    is cut by the end of a sample counts as its replacement characters, and a separator of documents
    by its name. None if tokens have no text."""

    @property
    def perplexity(self) -> float:
        """e^loss."""
        return exponential(self.loss)

    @property
    def loss_per_byte(self) -> float | None:
        """Loss in nats per UTF-8 byte; None if tokens have no text."""
        return self.loss * self.targets / self.bytes if self.bytes else None

    @property
    def loss_per_character(self) -> float | None:
        """Loss in nats per character; None if tokens have no text."""
        return self.loss * self.targets / self.characters if self.characters else None

    @property
    def bits_per_byte(self) -> float | None:
        """Loss in bits per UTF-8 byte; None if tokens have no text."""
        return None if self.loss_per_byte is None else self.loss_per_byte / math.log(2)

    @property
    def perplexity_per_character(self) -> float | None:
        """e^(loss per character), Languini's normalised perplexity; None if tokens have no text."""
        return None if self.loss_per_character is None else exponential(self.loss_per_character)


def exponential(x: float) -> float:
    """Return e^x; infinity if that overflows a float."""
    return math.inf if x > 709 else math.exp(x)
