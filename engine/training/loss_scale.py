"""The dynamic loss scale of fp16 (Micikevicius et al. 2018, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config.schema import LossScaleSettings as Settings


@dataclass
class LossScale:
    """What the loss is multiplied with before backward, so that small gradients do not vanish.

    An overflow on any rank skips the step on all. ``hysteresis`` of them in a row shrink the scale,
    ``growth_interval`` steps without one let it grow.
    """

    settings: Settings
    scale: float = 0.0
    steps_since_overflow: int = 0
    consecutive_overflows: int = 0
    skipped: int = 0

    def __post_init__(self) -> None:
        self.scale = self.scale or self.settings.initial

    def update(self, overflow: bool) -> None:
        """Learn how a step went."""
        settings = self.settings
        if overflow:
            self.steps_since_overflow, self.consecutive_overflows, self.skipped = (
                0,
                self.consecutive_overflows + 1,
                self.skipped + 1,
            )
            if self.consecutive_overflows >= settings.hysteresis:
                self.scale = max(self.scale * settings.backoff_factor, settings.min)
                self.consecutive_overflows = 0
        else:
            self.steps_since_overflow, self.consecutive_overflows = self.steps_since_overflow + 1, 0
            if self.steps_since_overflow >= settings.growth_interval:
                self.scale = min(self.scale * settings.growth_factor, settings.max)
                self.steps_since_overflow = 0

    @property
    def exhausted(self) -> bool:
        """Whether it can shrink no more: what overflows then is no matter of scale."""
        return self.scale <= self.settings.min
