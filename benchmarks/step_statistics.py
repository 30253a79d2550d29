"""The cost of statistics of a step's tensors: in a step that has them, and in one that has not.

    python benchmarks/step_statistics.py [--case NAME ...] [--pairs N]

Steps with and without statistics take turns. A step without statistics pays for the calls that ask
whether something observes it; their cost is computed: calls times the seconds of a call, over the
fastest step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from benchmarks.step import stepper
from benchmarks.step_times import LAYOUTS
from engine.training.pipeline import unobserved
from engine.world.processor import this_processor
from models.gpt import GPT
from models.parallel.collectives import Traffic
from models.parallel.context import ParallelContext
from tests.support.training import open_axes
from tests.support.worlds import run_world


def measure(rank: int, size: int, name: str, pairs: int) -> str:
    """Return the costs on this rank as text."""
    layout, case = LAYOUTS[name]
    parallel = ParallelContext(mode=layout.mode, axes=open_axes(layout, rank, Traffic()))
    without, batches = stepper(case, parallel, compiled=False), case.batches()
    with_them, number = replace(without, statistics_every=1), 0

    def seconds(*, observed: bool) -> float:
        nonlocal number
        number += 1
        batch, started = batches[number % len(batches)], time.perf_counter()
        runs = with_them if observed else without
        runs.run(number, [batch], targets=layout.data * batch[1].numel(), lr=1e-4)
        return time.perf_counter() - started

    seconds(observed=True)
    found = [(seconds(observed=True), seconds(observed=False)) for _ in range(pairs)]
    ratios, step = [on / off for on, off in found], min(off for _, off in found)
    chunk = without.model[0]
    blocks = sum(1 for _ in chunk.head.chunks(batches[0][1].numel(), batches[0][1].numel()))
    off = fastest(lambda: without._statistics(1)) + fastest(lambda: observe_nothing(chunk, blocks))
    return (
        f"with / without: median {median(ratios):.3f}, best {min(ratios):.3f} of {pairs} pairs; "
        f"without: {1e6 * off:.2f} us in a step of {1e3 * step:.1f} ms, {off / step:.5%}"
    )


def observe_nothing(chunk: GPT, blocks: int) -> None:
    """Do what a step without statistics does for them: one context for the micro-batch, and one
    empty list for each chunk of logits."""
    with unobserved(chunk, torch.empty(0)):
        for _ in range(blocks):
            for observe in chunk.head.observers:
                raise AssertionError(f"{observe} observes")


def fastest(call: Callable[[], object], calls: int = 2000) -> float:
    """Return the seconds of a call: the least of ten measurements."""

    def once() -> float:
        started = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - started) / calls

    return min(once() for _ in range(10))


def main() -> None:
    """Measure the chosen layouts and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--case", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--pairs", type=int, default=30)
    args = parser.parse_args()
    print(f"{this_processor().name}, torch {torch.__version__}")
    for name in args.case:
        ranks = LAYOUTS[name][0].gpus
        print(f"{name:<18} {run_world(ranks, measure, name, args.pairs, timeout=3600)[0]}")


if __name__ == "__main__":
    main()
