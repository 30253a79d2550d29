"""The summary of an epoch: time, mean losses, and peak memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import fmean


@dataclass(frozen=True, kw_only=True)
class EpochSummary:
    """The time, losses and memory of an epoch's steps: from the step after the previous epoch's
    last step, or from the first step after a resume, to the step in which the epoch ends."""

    epoch: int
    """Counted from 1. If several epochs end in one step, the last of them."""
    first_step: int
    last_step: int
    seconds: float
    """All time of rank 0 up to the end of the last step and its validation. A checkpoint after the
    last step counts in the next epoch."""
    train_loss: float | None
    """The mean of the steps' losses that are finite; None without one."""
    val_loss: float | None
    """The mean of the validations' losses that are finite; None without one."""
    memory_bytes: int
    """The peak memory of a rank so far, mean over all ranks: allocated by torch on a CUDA device,
    resident on a CPU."""
    host_memory_bytes: int
    """The peak resident memory of a rank's process so far, mean over all ranks."""

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.last_step + 1 - self.first_step

    def record(self) -> dict[str, int | float]:
        """Return the value of ``epoch`` in a line of log.jsonl, without the losses that are
        None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def curves(self) -> dict[str, float]:
        """Return the numbers that sinks plot over the epochs: GROUP/NAME -> number."""
        numbers = {
            "epoch/loss_train": self.train_loss,
            "epoch/loss_validation": self.val_loss,
            "epoch/seconds": self.seconds,
            "epoch/memory_GiB": self.memory_bytes / 2**30,
            "epoch/host_memory_GiB": self.host_memory_bytes / 2**30,
        }
        return {name: value for name, value in numbers.items() if value is not None}


class EpochMeter:
    """Collects the times and losses of an epoch's steps."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, float, float, float | None]] = []

    def add(self, step: int, *, seconds: float, loss: float, val_loss: float | None) -> None:
        """Add a step and its validation, which took ``seconds`` together."""
        self._steps.append((step, seconds, loss, val_loss))

    def end(self, epoch: int, *, memory_bytes: int, host_memory_bytes: int) -> EpochSummary:
        """Return the summary of ``epoch``, which ends in the last step added. The next step begins
        another epoch."""
        steps, seconds, losses, val_losses = zip(*self._steps, strict=True)
        self._steps.clear()
        return EpochSummary(
            epoch=epoch,
            first_step=steps[0],
            last_step=steps[-1],
            seconds=sum(seconds),
            train_loss=_finite_mean(losses),
            val_loss=_finite_mean(val_losses),
            memory_bytes=memory_bytes,
            host_memory_bytes=host_memory_bytes,
        )


def _finite_mean(losses: Iterable[float | None]) -> float | None:
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    return fmean(finite) if finite else None
