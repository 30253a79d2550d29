"""What the cases of a check share: folders, sizes, time, and how one is run. No torch."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu_check.processes import CaseFailedError
from benchmarks.gpu_check.results import CaseResult, Results
from benchmarks.gpu_check.sizes import CheckSizes
from engine.world.processor import usable_cores

SIDE_BY_SIDE = 3
"""Cases that run at once where only their results count."""
LEAST_SECONDS = 5.0
"""A case is not begun with less."""


@dataclass(frozen=True, kw_only=True)
class GpuCheck:
    """``ends``: when all must be done, by the monotonic clock. ``reference``: the losses of the
    run on the CPU, which others are compared with."""

    folder: Path
    sizes: CheckSizes
    results: Results
    ends: float
    reference: Future[list[float]] = field(default_factory=Future)

    def log(self, case: str) -> Path:
        path = self.folder / "logs" / f"{case}.txt"
        path.parent.mkdir(exist_ok=True)
        return path

    def timeout(self, seconds: float) -> float:
        """That many seconds, or those that are left of the whole check."""
        return max(0.1, min(seconds * self.sizes.patience, self.ends - time.monotonic()))

    def threads(self, ranks: int) -> int:
        """The threads of a rank, so that all cases at once do not take more than all cores."""
        return max(1, usable_cores() // (SIDE_BY_SIDE * ranks))


@dataclass(frozen=True, kw_only=True)
class CheckCase:
    """``run`` yields the case's rows. ``alone``: nothing else may run meanwhile, for it measures
    time."""

    name: str
    run: Callable[[GpuCheck], Iterable[CaseResult]]
    alone: bool = False

    def __call__(self, check: GpuCheck) -> None:
        """Add the case's rows; where it fails, one that says why."""
        started = time.monotonic()
        if check.ends - started < LEAST_SECONDS:
            check.results.add(
                CaseResult(case=self.name, passed=False, text="not run: no time left")
            )
            return
        try:
            for row in self.run(check):
                check.results.add(row)
        except CaseFailedError as error:
            self._failed(check, started, str(error))
        except Exception as error:
            with check.log(self.name).open("a") as file:
                traceback.print_exc(file=file)
            self._failed(check, started, f"{type(error).__name__}: {error}")

    def _failed(self, check: GpuCheck, started: float, why: str) -> None:
        seconds = time.monotonic() - started
        check.results.add(CaseResult(case=self.name, passed=False, seconds=seconds, text=why))
