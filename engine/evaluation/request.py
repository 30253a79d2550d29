"""The request of an evaluation and its result. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.config.sections.data import ENDLESS_TYPES
from engine.config.splits import TRAIN, VALIDATION, holds_out, known_splits
from engine.data.text_loss.bits_per_byte import TextLoss
from engine.errors import UserError
from engine.plan import Plan

DERIVED = (
    *("bits_per_byte", "bits_per_dimension"),
    *("loss_per_byte", "loss_per_character", "perplexity_per_character"),
)
"""Numbers of a result that follow from its fields."""
ALL = "all"
TOPS = (1, 10)
"""The k of each top-k accuracy."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """The samples and targets to evaluate."""

    split: str | None = None
    """The name of a split, or several separated by commas; "all": every split but 'train'; None:
    the one of eval.split."""
    samples: int | None = None
    """Number of samples, from the first of each split; None: all."""
    last_n: int | None = None
    """Only the targets at the last N positions of each sample count; None: all."""
    sliding: bool = False
    """Samples overlap: each begins ``last_n`` tokens after the one before, so that every target but
    the first ones of a split counts."""

    @property
    def names_several_splits(self) -> bool:
        """Return whether several splits are asked for. Then the JSON is a list, even of one."""
        return self.split == ALL or "," in (self.split or "")

    def splits(self, plan: Plan, offered: Iterable[str] = ()) -> list[str]:
        """Return the names of the splits to evaluate; "all" stands for all of ``offered`` but
        'train'."""
        if self.split == ALL:
            return [name for name in offered if name != TRAIN]
        return (self.split or plan.settings.eval.split).split(",")

    def check(self, plan: Plan) -> None:
        """Raise UserError if the plan's data cannot satisfy the request, as far as that is known
        before the data is opened."""
        settings, known = plan.settings, known_splits(plan.settings)
        if self.last_n is not None and self.last_n > settings.seq_len:
            raise UserError(
                f"--last-n {self.last_n} is more than {plan.cite('seq_len')}; pass at most "
                f"{settings.seq_len}"
            )
        if self.sliding and self.last_n is None:
            raise UserError("--sliding needs --last-n N, by which the samples advance")
        for split in self.splits(plan, known):
            if known and split not in known:
                raise UserError(
                    f"there is no split {split!r} of {plan.cite('data.type')}; use one of "
                    f"{', '.join(known)}"
                )
            if split == VALIDATION and not holds_out(settings):
                raise UserError(
                    f"{plan.cite('data.validation')}, so there is no validation split; "
                    "use --split train"
                )
            endless = settings.data.type in ENDLESS_TYPES and split == TRAIN
            if endless and self.samples is None:
                raise UserError(f"{plan.cite('data.type')} is endless; pass --samples N")


@dataclass(frozen=True, kw_only=True)
class Measured(TextLoss):
    """The loss and the accuracy over some targets."""

    top_1: float
    """Fraction of the targets that were the most likely token; in a tie the lower id is."""
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
        """Loss in bits per ``dimension``; None if the tokens are not pixels."""
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
        """Return the path to save the result at; repeating the evaluation replaces it."""
        step = "weights" if self.step is None else str(self.step)
        part = f"-last-{self.last_n}" if self.last_n else ""
        part += "-sliding" if self.sliding else ""
        part += "" if self.samples == self.split_samples else f"-first-{self.samples}"
        return folder / f"evaluate-{step}-{self.split}{part}.json"
