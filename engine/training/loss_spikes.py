"""Detection of loss spikes, whose steps are skipped."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config.sections.loss import LossSpikeSettings as Settings


@dataclass(frozen=True, kw_only=True)
class SpikeVerdict:
    """The decision on one step: whether the optimizer skips it, and the reason if it does."""

    skip: bool
    reason: str = ""


@dataclass
class LossSpikes:
    """Detects loss spikes: losses over ``factor`` times the median of the last ``window`` losses
    of steps that were not skipped.

    Checkpoints save the fields below ``settings`` by their names, which ``LossSpikesState`` of
    engine/checkpoint/manifest.py repeats.
    """

    settings: Settings
    recent: list[float] = field(default_factory=list)
    """Losses of steps that were not skipped, the newest last; more than ``window`` of them if a
    checkpoint was saved with a larger window."""
    consecutive_skips: int = 0
    """Steps skipped since the last step that was not skipped."""
    skipped: int = 0
    """Steps skipped since the start of the run."""

    @property
    def limit(self) -> float | None:
        """Return the highest loss that is no spike; None until ``window`` losses are recorded."""
        factor, window = self.settings.factor, self.settings.window
        if factor is None or len(self.recent) < window:
            return None
        return factor * self._median

    @property
    def _median(self) -> float:
        return median(self.recent[-self.settings.window :])

    @property
    def exhausted(self) -> bool:
        """Return whether more than ``max_skips`` consecutive steps were skipped."""
        return self.consecutive_skips > self.settings.max_skips

    def update(self, loss: float) -> SpikeVerdict:
        """Record the loss of a step, and decide whether the step is skipped."""
        limit, settings = self.limit, self.settings
        if limit is not None and loss > limit:
            self.consecutive_skips, self.skipped = self.consecutive_skips + 1, self.skipped + 1
            reason = (
                f"loss {loss:.4f} is over {settings.factor:g} x {self._median:.4f}, the "
                f"median of the last {settings.window} losses"
            )
            return SpikeVerdict(skip=True, reason=reason)
        self.consecutive_skips = 0
        self.recent = [*self.recent, loss][-settings.window :]
        return SpikeVerdict(skip=False)
