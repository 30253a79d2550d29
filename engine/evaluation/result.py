"""The result of an evaluation: losses per token, byte, character and dimension, and accuracies. No
torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.data.text_loss.bits_per_byte import TextLoss

DERIVED = (
    *("bits_per_byte", "bits_per_dimension"),
    *("loss_per_byte", "loss_per_character", "perplexity_per_character"),
)
"""Numbers of a result that follow from its fields."""
TOPS = (1, 10)
"""The k of each top-k accuracy."""


@dataclass(frozen=True, kw_only=True)
class Measured(TextLoss):
    """The loss and the accuracies over a set of targets."""

    top_1: float
    """Fraction of the targets that were the most likely token; in a tie, the token with the lower
    id."""
    top_10: float
    """Fraction of the targets that were among the ten most likely tokens."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measured):
    """The result of an evaluation."""

    run: str
    weights: str
    step: int | None
    """The step after which the weights were saved, if known."""
    split: str
    samples: int
    """Samples evaluated."""
    split_samples: int | None
    """Samples in the split; None: endless."""
    seq_len: int
    last_n: int | None
    sliding: bool
    dimension: str | None = None
    """The unit of ``bits_per_dimension`` in words: one target of an image. None if the tokens are
    not pixels."""
    layout: str
    precision: str
    overrides: Sequence[str]
    seconds: float

    @property
    def bits_per_dimension(self) -> float | None:
        """Loss in bits per pixel token (``dimension``); None if the tokens are not pixels."""
        return None if self.dimension is None else self.loss / math.log(2)

    def as_json(self) -> str:
        """Format the result as a JSON object."""
        fields: dict[str, Any] = asdict(self) | {name: getattr(self, name) for name in DERIVED}
        fields["perplexity"] = self.perplexity if math.isfinite(self.perplexity) else None
        return json.dumps(fields, indent=2)

    def table(self) -> str:
        """Format the result for the terminal."""
        which = f"step {self.step:,}" if self.step is not None else "its last weights"
        is_all = self.samples == self.split_samples
        first = f"{self.samples:,} samples" if is_all else f"the first {self.samples:,} samples"
        part = f", the last {self.last_n} of {self.seq_len} positions" if self.last_n else ""
        part += ", sliding" if self.sliding else ""
        rows = {
            "loss": f"{self.loss:.4f}",
            "perplexity": f"{self.perplexity:,.2f}",
            **self._per_unit(),
            "top-1": f"{self.top_1:.2%}",
            "top-10": f"{self.top_10:.2%}",
        }
        return "\n".join(
            [
                f"{self.run}, {which}: {self.split}, {first}, {self.targets:,} targets{part}",
                *(f"  {name:12}{value}" for name, value in rows.items()),
                f"  {self.layout}, {self.precision}, {self.seconds:.1f} s",
            ]
        )

    def _per_unit(self) -> dict[str, str]:
        """Return the table's rows on the loss per byte and character, or per dimension."""
        if self.bits_per_dimension is not None:
            return {"bits/dim": f"{self.bits_per_dimension:.4f} (a dimension is {self.dimension})"}
        rows = {
            "bits/byte": self.bits_per_byte,
            "loss/byte": self.loss_per_byte,
            "loss/char": self.loss_per_character,
        }
        return {
            name: "- (its tokens have no text)" if number is None else f"{number:.4f}"
            for name, number in rows.items()
        }

    def path(self, folder: Path) -> Path:
        """Return the path in ``folder`` to save the result at; a repeated evaluation has the same
        path."""
        step = "weights" if self.step is None else str(self.step)
        part = f"-last-{self.last_n}" if self.last_n else ""
        part += "-sliding" if self.sliding else ""
        part += "" if self.samples == self.split_samples else f"-first-{self.samples}"
        return folder / f"evaluate-{step}-{self.split}{part}.json"
