"""Compiled steps and eager steps of the same ranks, which take turns, in any mode.

    python benchmarks/compiled.py [--case NAME ...] [--pairs N] [--threads N]

A line has the seconds of both steps (median and best over the pairs) on the slowest rank, the
share of them that ranks wait for each other, and the median ratio of the pairs. On a machine that
others use, the ratio of the CPU seconds of all ranks tells more: it leaves out what ranks wait for.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace

import torch
from torch._dynamo.utils import counters

from benchmarks.cases import Workload
from benchmarks.step import sharded_context, stepper
from engine.layout import Layout
from engine.training.build import DTYPES
from engine.training.step import Stepper
from engine.world.processor import this_processor
from models.parallel.compilation import axes_of_compiled_code
from models.parallel.registry import modes
from tests.support.worlds import run_world

WORKLOAD = Workload(layers=4, heads=8, width=512, vocabulary=2048, samples=8, length=128)
LAYOUTS = {
    "serial": Layout(mode=modes()["serial"]),
    "1d x 2": Layout(mode=modes()["1d"], tensor=2),
    "2d x 4": Layout(mode=modes()["2d"], tensor=4),
    "3d x 8": Layout(mode=modes()["3d"], tensor=8),
}


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The steps of a rank, by kind: "eager" and "compiled"."""

    seconds: dict[str, list[float]]
    waiting: dict[str, list[float]]
    """Seconds of these that the rank waits for others."""
    cpu: dict[str, list[float]]
    """CPU seconds of the rank."""
    graphs: int
    """The graphs that were compiled."""


def take_turns(rank: int, size: int, name: str, case: Workload, pairs: int, threads: int) -> Turns:
    """Run steps of both kinds on this rank."""
    torch.set_num_threads(threads)
    parallel = sharded_context(case, LAYOUTS[name], rank)
    kinds = {"eager": False, "compiled": True}
    steppers = {
        kind: stepper(case, parallel, compiled=compiled) for kind, compiled in kinds.items()
    }
    empty = [{kind: list[float]() for kind in kinds} for _ in range(3)]
    turns = Turns(seconds=empty[0], waiting=empty[1], cpu=empty[2], graphs=0)
    with axes_of_compiled_code(parallel.axes):
        for number in range(pairs + 1):
            for kind, runs in steppers.items():
                seconds, waiting, cpu = timed_step(runs, case, number)
                if number:  # the first turn compiles
                    turns.seconds[kind].append(seconds)
                    turns.waiting[kind].append(waiting)
                    turns.cpu[kind].append(cpu)
    return replace(turns, graphs=counters["stats"]["unique_graphs"])


def timed_step(runs: Stepper, case: Workload, number: int) -> tuple[float, float, float]:
    """Run a step; return its seconds, the seconds of waiting for other ranks, and its CPU
    seconds."""
    world, (ids, targets) = runs.world, case.batches()[0]
    world.all_reduce(torch.zeros(1))  # all ranks start together
    world.traffic.clock.restart()
    started, used = time.perf_counter(), time.process_time()
    runs.run(number + 1, [(ids, targets)], targets=targets.numel(), lr=1e-4)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    spent = world.traffic.clock.take()
    return seconds, sum(some for activity, some in spent.items() if activity.waiting), cpu


def line_of(name: str, ranks: list[Turns]) -> str:
    """Return the line of a layout, from the turns of its ranks."""
    text = f"{name:10}"
    slowest: dict[str, list[float]] = {}
    for kind in ranks[0].seconds:
        by_turn = list(zip(*(rank.seconds[kind] for rank in ranks), strict=True))
        slowest[kind] = [max(turn) for turn in by_turn]
        waited = statistics.median(
            sum(rank.waiting[kind]) / sum(rank.seconds[kind]) for rank in ranks
        )
        median, best = statistics.median(slowest[kind]), min(slowest[kind])
        text += f" {kind} {1e3 * median:7.1f} ms (best {1e3 * best:7.1f}, waiting {waited:4.0%})"
    ratios = [b / a for a, b in zip(slowest["eager"], slowest["compiled"], strict=True)]
    best_ratio = min(slowest["compiled"]) / min(slowest["eager"])
    cpu = {
        kind: statistics.median(
            sum(turn) for turn in zip(*(rank.cpu[kind] for rank in ranks), strict=True)
        )
        for kind in slowest
    }
    return (
        f"{text} ratio {statistics.median(ratios):.2f} (of the best {best_ratio:.2f}), of CPU "
        f"seconds {cpu['compiled'] / cpu['eager']:.2f}; {ranks[0].graphs} graphs"
    )


def main() -> None:
    """Measure the chosen layouts and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--case", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=DTYPES, default="float32")
    args = parser.parse_args()
    case = replace(WORKLOAD, precision=args.precision)
    print(f"{this_processor().name}, torch {torch.__version__}, {args.threads} threads a rank")
    for name in args.case:
        gpus = LAYOUTS[name].gpus
        ranks = run_world(gpus, take_turns, name, case, args.pairs, args.threads, timeout=1000)
        print(line_of(name, ranks), flush=True)


if __name__ == "__main__":
    main()
