"""Steps whose loss is out of line with those before: skipped, a few in a row at most."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config.schema import LossSpikeSettings as Settings


@dataclass
class LossSpikes:
    """Compares each loss with the median of the ``window`` before it that were learned from.

    ``recent``: those, and more where a larger window was kept; ``consecutive_skips`` and
    ``skipped``: steps that were not, just now and in all.
    """

    settings: Settings
    recent: list[float] = field(default_factory=list)
    consecutive_skips: int = 0
    skipped: int = 0

    @property
    def limit(self) -> float | None:
        """What a loss may not be over; None until there are enough to compare it with."""
        factor, window = self.settings.factor, self.settings.window
        if factor is None or len(self.recent) < window:
            return None
        return factor * self._median

    @property
    def _median(self) -> float:
        return median(self.recent[-self.settings.window :])

    @property
    def exhausted(self) -> bool:
        """Whether more steps in a row were skipped than may be."""
        return self.consecutive_skips > self.settings.max_skips

    def check(self, loss: float) -> str:
        """Why the step of this loss is skipped; nothing where it is not."""
        limit, settings = self.limit, self.settings
        if limit is not None and loss > limit:
            self.consecutive_skips, self.skipped = self.consecutive_skips + 1, self.skipped + 1
            return (
                f"loss {loss:.4f} is over {settings.factor:g} x {self._median:.4f}, the "
                f"median of {settings.window} steps before"
            )
        self.consecutive_skips = 0
        self.recent = [*self.recent, loss][-settings.window :]
        return ""
