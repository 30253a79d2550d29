"""The seconds of a step by kind of work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from models.parallel.clock import OTHER, Activity

DATA = "data"
FORWARD_BACKWARD = "forward_backward"
OPTIMIZER = "optimizer"
VALIDATING = "validation"
"""Parts of a run, besides OTHER."""


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """The seconds of one rank, divided by kind of work. The parts neither overlap nor leave gaps.

    On a CUDA device an optimizer step ends after the next step has begun, so it is counted in the
    next step.
    """

    data: float = 0.0
    """Waiting for the samples of the step."""
    forward_backward: float = 0.0
    communication: float = 0.0
    """Waiting for other ranks in a training step: communication that no computation hides."""
    optimizer: float = 0.0
    """Norm and clipping of the gradient, and the update."""
    validation: float = 0.0
    """Validation, with its communication."""
    other: float = 0.0
    """Logs, checkpoints, and everything else between steps."""

    @classmethod
    def of(cls, seconds: Mapping[Activity, float]) -> Self:
        """Sum the seconds of a clock's activities by kind of work."""
        parts = {field.name: 0.0 for field in fields(cls)}
        for (part, waiting), spent in seconds.items():
            in_step = part not in (VALIDATING, OTHER)
            parts["communication" if waiting and in_step else part] += spent
        return cls(**parts)

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(self.seconds().values())

    def seconds(self) -> dict[str, float]:
        """Map the name of each part to its seconds."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: StepTimes) -> StepTimes:
        """Add the times part by part."""
        more = other.seconds()
        return StepTimes(**{name: spent + more[name] for name, spent in self.seconds().items()})
