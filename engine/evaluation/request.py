"""The request of an evaluation. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.config.sections.data import ENDLESS_TYPES
from engine.config.splits import TRAIN, VALIDATION, holds_out, known_splits
from engine.errors import UserError
from engine.plan import Plan

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """The samples and targets to evaluate."""

    split: str | None = None
    """The name of a split, or several separated by commas; "all": every split but 'train'; None:
    the value of the setting eval.split."""
    samples: int | None = None
    """Number of samples, from the first of each split; None: all."""
    last_n: int | None = None
    """Only the targets at the last N positions of each sample count; None: all."""
    sliding: bool = False
    """Samples overlap: each begins ``last_n`` tokens after the previous sample, so that every
    target but the first ones of a split counts."""

    @property
    def names_several_splits(self) -> bool:
        """Return whether ``split`` can name several splits. If so, the JSON output is a list, even
        of one result."""
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
