"""The cost of dividing a step's time by kind of work: steps with and without the clock take turns.

    python benchmarks/step_times.py [--case NAME ...] [--pairs N]

Both steps are one Stepper on the same ranks; without the clock, its methods do nothing. The ratio
of a pair is noisy on a machine that others use, so the cost is also computed: changes of the clock
in a step, times the seconds of a change, over the fastest step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.cases import DEMO, Workload
from benchmarks.step import stepper
from engine.layout import Layout
from engine.training.step_times import DATA, StepTimes
from engine.world.processor import this_processor
from models.parallel.clock import OTHER, Activity, PartClock
from models.parallel.collectives import Traffic
from models.parallel.context import ParallelContext
from models.parallel.registry import modes
from tests.support.training import open_axes
from tests.support.worlds import run_world

SMALL = Workload(layers=4, heads=4, width=256, vocabulary=4096, samples=4, length=128)
LAYOUTS = {
    "one process, demo": (Layout(mode=modes()["serial"]), DEMO),
    "one process": (Layout(mode=modes()["serial"]), SMALL),
    "data x 2": (Layout(mode=modes()["serial"], data=2), SMALL),
    "1d x 2": (Layout(mode=modes()["1d"], tensor=2), SMALL),
}


class NoClock(PartClock):
    """A clock that measures nothing."""

    def start(self, part: str) -> None:
        """Do nothing."""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Do nothing around the block."""
        yield

    def take(self) -> dict[Activity, float]:
        """Return no seconds."""
        return {}


class CountingClock(PartClock):
    """A clock that counts its changes."""

    changes = 0

    def _change(self, activity: Activity) -> None:
        self.changes += 1
        super()._change(activity)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of the clock on a rank."""

    ratios: list[float]
    """Seconds with the clock over seconds without, by pair."""
    step: float
    """Seconds of the fastest step without the clock."""
    changes: int
    """Changes of the clock in a step."""
    change: float
    """Seconds of a change."""

    def __str__(self) -> str:
        computed = self.changes * self.change / self.step
        return (
            f"with / without: median {statistics.median(self.ratios):.4f}, best "
            f"{min(self.ratios):.4f} of {len(self.ratios)} pairs; {self.changes} changes of "
            f"{1e6 * self.change:.2f} us in a step of {1e3 * self.step:.1f} ms: {computed:.4%}"
        )


def measure(rank: int, size: int, name: str, pairs: int) -> Cost:
    """Return the cost on this rank."""
    layout, case = LAYOUTS[name]
    axes = open_axes(layout, rank, Traffic())
    parallel = ParallelContext(mode=layout.mode, axes=axes)
    runs, batches = stepper(case, parallel, compiled=False), case.batches()
    traffic, number = axes["world"].traffic, 0

    def seconds(clock: PartClock) -> float:
        nonlocal number
        traffic.clock, number = clock, number + 1
        started = time.perf_counter()
        clock.start(DATA)
        batch = batches[number % len(batches)]
        runs.run(number, [batch], targets=layout.data * batch[1].numel(), lr=1e-4)
        clock.start(OTHER)
        StepTimes.of(clock.take())
        return time.perf_counter() - started

    clocks = PartClock(), NoClock()
    for clock in clocks:
        seconds(clock)
    found = [[seconds(clock) for clock in clocks] for _ in range(pairs)]
    counting = CountingClock()
    seconds(counting)
    return Cost(
        ratios=[with_it / without for with_it, without in found],
        step=min(without for _, without in found),
        changes=counting.changes,
        change=fastest_change(),
    )


def fastest_change(changes: int = 20_000) -> float:
    """Return the seconds of a change of a clock: the least of ten measurements."""

    def once() -> float:
        clock, started = PartClock(), time.perf_counter()
        for _ in range(changes // 2):
            with clock.waiting():
                pass
        return (time.perf_counter() - started) / changes

    return min(once() for _ in range(10))


def main(print_line: Callable[[str], None] = print) -> None:
    """Measure the chosen layouts and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--case", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--pairs", type=int, default=100)
    args = parser.parse_args()
    print_line(f"{this_processor().name}, torch {torch.__version__}")
    for name in args.case:
        ranks = LAYOUTS[name][0].gpus
        cost = run_world(ranks, measure, name, args.pairs, timeout=3600)[0]
        print_line(f"{name:<18} {cost}")


if __name__ == "__main__":
    main()
