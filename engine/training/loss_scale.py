"""The dynamic loss scale of fp16 (Micikevicius et al. 2018, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config.sections.loss import LossScaleSettings as Settings


@dataclass
class LossScale:
    """The factor by which the loss is multiplied before backward, so that small gradients do not
    underflow.

    An overflow on any rank skips the step on all ranks. The scale shrinks after ``hysteresis``
    consecutive overflows and grows after ``growth_interval`` steps without one.

    Checkpoints save the fields below ``settings`` by their names, which ``LossScaleState`` of
    engine/checkpoint/manifest.py repeats.
    """

    settings: Settings
    scale: float = 0.0
    """0 at first: ``settings.initial`` is used."""
    steps_since_overflow: int = 0
    """Steps since the last overflow or growth."""
    consecutive_overflows: int = 0
    """Overflows since the last step without one or the last reduction of the scale."""
    skipped: int = 0
    """Steps skipped since the start of the run."""

    def __post_init__(self) -> None:
        self.scale = self.scale or self.settings.initial

    def update(self, overflow: bool) -> None:
        """Adapt the scale to a step with or without an overflow."""
        settings = self.settings
        if overflow:
            self.steps_since_overflow, self.skipped = 0, self.skipped + 1
            self.consecutive_overflows += 1
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
        """Return whether the scale is at its minimum: a further overflow has another cause."""
        return self.scale <= self.settings.min
