"""The state shared by the cases of a check (folder, sizes, time limit), and the runner of a case.

Imports no torch.
"""

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
"""The number of concurrent cases, where time is not measured."""
LEAST_SECONDS = 5.0
"""A case starts only if at least this much time remains."""


@dataclass(frozen=True, kw_only=True)
class GpuCheck:
    """The state of a check.

    ``ends``: the deadline of the whole check, by the monotonic clock.
    ``reference``: the losses of the run on the CPU, with which those of other runs are compared.
    """

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
        """Return ``seconds`` x patience, or the time left of the check if that is less."""
        return max(0.1, min(seconds * self.sizes.patience, self.ends - time.monotonic()))

    def threads(self, ranks: int) -> int:
        """Return the threads of a rank, such that concurrent cases share the cores."""
        return max(1, usable_cores() // (SIDE_BY_SIDE * ranks))


@dataclass(frozen=True, kw_only=True)
class CheckCase:
    """A case of a check.

    ``run``: yields the rows of the case.
    ``alone``: no other case may run at the same time, because the case measures time.
    """

    name: str
    run: Callable[[GpuCheck], Iterable[CaseResult]]
    alone: bool = False

    def __call__(self, check: GpuCheck) -> None:
        """Run the case and add its rows; if it fails, add a row with the reason."""
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
