"""The request of an evaluation and its result. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import UserError
from engine.plan import Plan

TOPS = (1, 10)
"""The k of each top-k accuracy."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """The samples and targets to evaluate."""

    split: Literal["train", "validation"] = "validation"
    samples: int | None = None
    """Number of samples, from the first of the split; None: all."""
    last_n: int | None = None
    """Only the targets at the last N positions of each sample count; None: all."""

    def check(self, plan: Plan) -> None:
        """Raise UserError if the plan's data cannot satisfy the request."""
        settings = plan.settings
        if self.last_n is not None and self.last_n > settings.seq_len:
            raise UserError(f"--last-n {self.last_n} is more than {plan.cite('seq_len')}")
        if self.split == "validation" and settings.data.validation == 0:
            raise UserError(
                f"{plan.cite('data.validation')}, so there is no validation split; "
                "use --split train"
            )
        endless = settings.data.type == "synthetic" and self.split == "train"
        if endless and self.samples is None:
            raise UserError(f"{plan.cite('data.type')} is endless; pass --samples N")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation."""

    run: str
    weights: str
    step: int | None
    """After which the weights were saved, if known."""
    split: str
    samples: int
    """Samples evaluated."""
    split_samples: int | None
    """Samples in the split; None: endless."""
    seq_len: int
    last_n: int | None
    targets: int
    """Targets evaluated."""
    bytes: int | None
    """UTF-8 bytes of the targets; None if tokens have no text."""
    loss: float
    """Mean over the targets, in nats."""
    top_1: float
    """Fraction of the targets that were the most likely token; in a tie the lower id is."""
    top_10: float
    """Fraction of the targets that were among the ten most likely tokens."""
    layout: str
    precision: str
    overrides: Sequence[str]
    seconds: float

    @property
    def perplexity(self) -> float:
        """e^loss; infinity if that overflows a float."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Loss in bits per UTF-8 byte of the targets; None if tokens have no text."""
        if not self.bytes:
            return None
        return self.loss * self.targets / math.log(2) / self.bytes

    def as_json(self) -> str:
        """Format the result as a JSON object."""
        fields: dict[str, Any] = {**asdict(self), "bits_per_byte": self.bits_per_byte}
        fields["perplexity"] = self.perplexity if math.isfinite(self.perplexity) else None
        return json.dumps(fields, indent=2)

    def table(self) -> str:
        """Format the result for the terminal."""
        which = f"step {self.step:,}" if self.step is not None else "its last weights"
        is_all = self.samples == self.split_samples
        first = f"{self.samples:,} samples" if is_all else f"the first {self.samples:,} samples"
        part = f", the last {self.last_n} of {self.seq_len} positions" if self.last_n else ""
        bits = self.bits_per_byte
        rows = {
            "loss": f"{self.loss:.4f}",
            "perplexity": f"{self.perplexity:,.2f}",
            "bits/byte": "- (its tokens have no text)" if bits is None else f"{bits:.4f}",
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

    def path(self, folder: Path) -> Path:
        """Return the path to save the result at; repeating the evaluation replaces it."""
        step = "weights" if self.step is None else str(self.step)
        part = f"-last-{self.last_n}" if self.last_n else ""
        part += "" if self.samples == self.split_samples else f"-first-{self.samples}"
        return folder / f"evaluate-{step}-{self.split}{part}.json"
