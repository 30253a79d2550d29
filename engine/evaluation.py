"""What an evaluation is asked for and what it finds. No torch."""

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


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What is evaluated: a ``split`` from its first sample on, or so many ``samples`` of it; of
    each sample the targets at its ``last_n`` positions only, or all."""

    split: Literal["train", "validation"] = "validation"
    samples: int | None = None
    last_n: int | None = None

    def check(self, plan: Plan) -> None:
        """Raises UserError for what the plan's samples do not have."""
        settings = plan.settings
        if self.last_n is not None and self.last_n > settings.seq_len:
            raise UserError(f"--last-n {self.last_n} is more than {plan.cite('seq_len')}")
        if self.split == "validation" and settings.data.validation == 0:
            raise UserError(
                f"{plan.cite('data.validation')} leaves nothing to evaluate: --split train"
            )
        endless = settings.data.type == "synthetic" and self.split == "train"
        if endless and self.samples is None:
            raise UserError(f"{plan.cite('data.type')} never ends: --samples N of it")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found, over ``targets`` of ``samples``, of ``split_samples`` there are (None: they
    never end): their mean ``loss`` in nats, and the shares
    of them that were the likeliest token and among the ten likeliest (of equals the lower id is).

    ``bytes``: of UTF-8 that the targets stand for; None where tokens stand for no text.
    """

    run: str
    weights: str
    step: int | None
    split: str
    samples: int
    split_samples: int | None
    seq_len: int
    last_n: int | None
    targets: int
    bytes: int | None
    loss: float
    top_1: float
    top_10: float
    layout: str
    precision: str
    overrides: Sequence[str]
    seconds: float

    @property
    def perplexity(self) -> float:
        """e^loss; infinite where that is beyond a float."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """The bits that the targets take, for each byte that they stand for."""
        if not self.bytes:
            return None
        return self.loss * self.targets / math.log(2) / self.bytes

    def as_json(self) -> str:
        found: dict[str, Any] = {**asdict(self), "bits_per_byte": self.bits_per_byte}
        found["perplexity"] = self.perplexity if math.isfinite(self.perplexity) else None
        return json.dumps(found, indent=2)

    def table(self) -> str:
        """For the terminal."""
        which = f"step {self.step:,}" if self.step is not None else "its last weights"
        whole = self.samples == self.split_samples
        first = f"{self.samples:,} samples" if whole else f"the first {self.samples:,} samples"
        part = f", the last {self.last_n} of {self.seq_len} positions" if self.last_n else ""
        bits = self.bits_per_byte
        rows = {
            "loss": f"{self.loss:.4f}",
            "perplexity": f"{self.perplexity:,.2f}",
            "bits/byte": "- (its tokens stand for no text)" if bits is None else f"{bits:.4f}",
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
        """Where it is kept: another evaluation of the same replaces it."""
        step = "weights" if self.step is None else str(self.step)
        part = f"-last-{self.last_n}" if self.last_n else ""
        part += "" if self.samples == self.split_samples else f"-first-{self.samples}"
        return folder / f"evaluate-{step}-{self.split}{part}.json"
