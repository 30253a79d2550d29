"""Learning-rate schedules: a linear warm-up, multiplied by the ``decay`` of the schedule.

Every module in ``engine/optim/schedules`` is a schedule, called after the module. These are
modules, not a table, because config lists the names and must not import this package. A module has:

- ``decay(progress, floor)``: the fraction of the peak learning rate, for progress from 0 to 1;
- ``AFTER_WARMUP``: True if progress begins after the warm-up, False if it begins with the run.

The rate depends only on the data consumed, so a checkpoint saves no state of a schedule. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engine import discover

if TYPE_CHECKING:
    from engine.config.sections.optimizer import LRScheduleSettings
    from engine.config.setting_types import DataUnit
    from engine.data.batches.consumed import Consumed


@dataclass(frozen=True, kw_only=True)
class LRSchedule:
    """The learning rate of every step of a run, as a fraction of the peak.

    The position of a step is the number of tokens, epochs or steps consumed by its end:

    - warm-up: min(1, position / warmup);
    - progress: (position - warmup) / (total - warmup), or position / total if the schedule begins
      with the run.

    By steps, a schedule that begins after its warm-up starts one step later, so that step 1 of a
    run without warm-up has progress 0: the warm-up is step / (warmup + 1), progress
    (step - 1 - warmup) / (total - warmup). Then no warm-up step is at the peak, and the rates equal
    those of torch, transformers and Colossal-AI.
    """

    settings: LRScheduleSettings
    per_step: Consumed
    """The data of one step, which converts warmup to the unit of total."""
    end: Consumed
    """The data consumed by the end of the run, which is the default of total."""

    def factor(self, at: Consumed) -> float:
        """Return the fraction of the peak learning rate for the step that ends at ``at``."""
        settings = self.settings
        module = discover.load("engine.optim.schedules", settings.type)
        late = {"step": 1} if module.AFTER_WARMUP else {}
        warm_up = 1.0
        if settings.warmup:
            length = settings.warmup + late.get(settings.warmup_by, 0)
            warm_up = min(1.0, _amount(at, settings.warmup_by) / length)
        begin = self.warmup if module.AFTER_WARMUP else 0.0
        done = _amount(at, settings.by) - late.get(settings.by, 0) - begin
        length = self.total - begin
        progress = min(1.0, max(0.0, done / length)) if length > 0 else float(done > 0)
        decay: float = module.decay(progress, settings.floor)
        return warm_up * decay

    @property
    def total(self) -> float:
        """The end of the decay, in the unit ``by``."""
        given = self.settings.total
        return _amount(self.end, self.settings.by) if given is None else given

    @property
    def warmup(self) -> float:
        """The length of the warm-up, converted to the unit ``by``."""
        settings = self.settings
        if settings.warmup_by == settings.by:
            return settings.warmup
        steps = settings.warmup / _amount(self.per_step, settings.warmup_by)
        return steps * _amount(self.per_step, settings.by)

    @property
    def endless_unit(self) -> Literal["by", "warmup_by"] | None:
        """The setting that counts epochs although the data has no epochs; None if there is no such
        setting."""
        if self.per_step.epochs:
            return None
        if self.settings.by == "epoch":
            return "by"
        return "warmup_by" if self.settings.warmup_by == "epoch" else None


def _amount(consumed: Consumed, unit: DataUnit) -> float:
    """Return the steps, epochs or tokens of ``consumed``, as ``unit`` says."""
    return {"step": consumed.step, "epoch": consumed.epochs, "token": consumed.tokens}[unit]
