"""A training step against a plain PyTorch GPT-2 step, and every mode against one process.

    python benchmarks/step.py [--case NAME ...] [--against plain|bare] [--pairs N] [--modes]
        [--json FILE]

The plain step is transformers' GPT2LMHeadModel (SDPA, dropout 0), the bare one the GPT-2 of
benchmarks/plain.py, each with cross_entropy of full logits and fused AdamW on the same batches from
the same weights; bf16 is autocast there and compute on float32 weights here.
Each contender runs in a separate process, and they take turns step by step; the reported ratio is
the median over pairs of steps. Peak memory is the process' highest resident set, imports included
(on CUDA, the bytes that torch allocated). On CUDA both are compiled, at batch 64 x 1024.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import BATCHES, CASES, ON_CUDA, OPTIMIZER, Step, Workload
from benchmarks.plain import bare, plain
from engine.estimate.flops import smallest_matmul_flops
from engine.layout import Layout
from engine.optim.optimizer import ResidentOptimizer
from engine.optim.registry import build_optimizer
from engine.training.build import DTYPES, named_parameters
from engine.training.gradients import GradientReducer
from engine.training.matmuls import MATMULS, choose_matmul
from engine.training.memory import keep_freed_memory, peak_bytes
from engine.training.pipeline import Pipeline
from engine.training.step import Stepper
from models.chunks import ModelChunks
from models.gpt import GPT
from models.parallel.collectives import Traffic
from models.parallel.context import ParallelContext
from models.parallel.kernels import DeviceKernels
from models.parallel.registry import modes
from tests.support.training import open_axes
from tests.support.worlds import run_world


def stepper(case: Workload, parallel: ParallelContext, *, compiled: bool) -> Stepper:
    """Build our training step on ``parallel``; set the process' allocator as a run does."""
    keep_freed_memory()
    model = ModelChunks([GPT(case.config, parallel)])
    if case.drawn_on_device:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, case.config.init_std)
    else:
        model.initialise(1)
    if compiled:
        model[0].compile_blocks(deferred=False)
    return Stepper(
        model=model,
        pipeline=Pipeline(model, parallel.axes["pipeline"], "1f1b"),
        optimizer=ResidentOptimizer(
            build_optimizer(OPTIMIZER, named_parameters(model)), model.named_parameters()
        ),
        gradients=GradientReducer(model),
        world=parallel.axes["world"],
        seed=3,
    )


def whole(case: Workload) -> ParallelContext:
    """Build the context of a single process, with the matmul and kernels that a run would
    choose."""
    dtype, compute = DTYPES[case.precision]
    parallel = ParallelContext.single_device(case.device, dtype=dtype, compute=compute)
    flops = smallest_matmul_flops(case.config, case.samples * case.length, 1)
    return replace(
        parallel,
        matmul=MATMULS[choose_matmul(compute, case.device, flops)],
        kernels=DeviceKernels.of(case.device, dtype, compute),
    )


def ours(case: Workload) -> Step:
    runs, batches = stepper(case, whole(case), compiled=case.compiled), case.batches()
    number = 0

    def step() -> float:
        nonlocal number
        number += 1
        batch = batches[number % BATCHES]
        return runs.run(number, [batch], targets=batch[1].numel(), lr=OPTIMIZER.lr).loss

    return step


CONTENDERS = {"ours": ours, "plain": plain, "bare": bare}


def serve(pipe: Connection, name: str, case: Workload, threads: int) -> None:
    """Run a step for each true message and send its seconds and loss, then the peak memory."""
    torch.set_num_threads(threads)
    step = CONTENDERS[name](case)
    while pipe.recv():
        started = time.perf_counter()
        loss = step()
        pipe.send((time.perf_counter() - started, loss))
    pipe.send(peak_bytes(case.device))


@contextmanager
def contender(name: str, case: Workload, threads: int) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, name, case, threads), daemon=True)
    process.start()
    theirs.close()  # so that recv raises EOFError if the process fails
    try:
        yield mine
    finally:
        mine.close()
        process.join(30)
        process.kill()


def pair(case: Workload, pairs: int, threads: int, other: str = "plain") -> dict[str, Any]:
    """Measure ours against another contender: ratios of tokens/s and of peak memory."""
    names = "ours", other
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    with contender(names[0], case, threads) as one, contender(names[1], case, threads) as two:
        pipes = dict(zip(names, (one, two), strict=True))
        for turn in range(pairs + 2):
            for name, pipe in pipes.items():
                pipe.send(True)
                duration, loss = pipe.recv()
                losses[name].append(loss)
                if turn >= 2:  # the first two turns are warm-up
                    seconds[name].append(duration)
        peaks = {}
        for name, pipe in pipes.items():
            pipe.send(False)
            peaks[name] = pipe.recv()
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    tokens = case.samples * case.length
    return {
        "tokens_per_second": {n: tokens / statistics.median(s) for n, s in seconds.items()},
        "speed": statistics.median(ratios),
        "peak_bytes": peaks,
        "memory": peaks["ours"] / peaks[other],
        "first_losses": {name: values[0] for name, values in losses.items()},
        "last_losses": {name: values[-1] for name, values in losses.items()},
    }


def sharded_context(case: Workload, layout: Layout, rank: int) -> ParallelContext:
    """Return the context of one rank of ``layout``, with the matmul library that a run chooses."""
    dtype, compute = DTYPES[case.precision]
    flops = smallest_matmul_flops(case.config, case.samples * case.length, layout.tensor)
    return ParallelContext(
        mode=layout.mode,
        axes=open_axes(layout, rank, Traffic()),
        dtype=dtype,
        compute=compute,
        matmul=MATMULS[choose_matmul(compute, torch.device("cpu"), flops)],
    )


def sharded_steps(
    rank: int, size: int, case: Workload, mode: str, depth: int, steps: int, threads: int
) -> list[float]:
    """Train on one of ``size`` ranks sharded by ``mode``; return the seconds of each step."""
    torch.set_num_threads(threads)
    layout = Layout(mode=modes()[mode], tensor=size, depth=depth)
    parallel = sharded_context(case, layout, rank)
    runs, batches, seconds = stepper(case, parallel, compiled=False), case.batches(), []
    for number in range(1, steps + 2):
        ids, targets = batches[number % BATCHES]
        started = time.perf_counter()
        runs.run(number, [(ids, targets)], targets=targets.numel(), lr=OPTIMIZER.lr)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def layouts() -> Iterator[Layout]:
    """Yield each sharded mode on the fewest ranks above one, for DEPTH 1 and 2 if it uses depth."""
    for mode in modes().values():
        for depth in (1, 2) if mode.uses_depth else (1,):
            for tensor in range(2, 9):
                if mode.axes(tensor, depth):
                    yield Layout(mode=mode, tensor=tensor, depth=depth)
                    break


def across(case: Workload, pairs: int, threads: int) -> dict[str, float]:
    """Measure each mode's tokens/s against one process with ``threads``, at equal global batch."""
    ratios_by_mode = {}
    for layout in layouts():
        ratios = []
        for _ in range(max(1, pairs // 3)):
            one_process = run_world(1, sharded_steps, case, "serial", 1, 3, threads, timeout=600)[0]
            how = layout.mode.name, layout.depth
            ranks = run_world(layout.gpus, sharded_steps, case, *how, 3, 1, timeout=600)[0]
            ratios.append(statistics.median(one_process) / statistics.median(ranks))
        name = f"{layout.mode.name} x {layout.tensor}"
        ratios_by_mode[name + (f" depth {layout.depth}" if layout.mode.uses_depth else "")] = (
            statistics.median(ratios)
        )
    return ratios_by_mode


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cases = CASES | (ON_CUDA if torch.cuda.is_available() else {})
    parser.add_argument("--case", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--against", choices=["plain", "bare"], default="plain")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--modes", action="store_true", help="every mode against one process")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {"torch": torch.__version__, "threads": args.threads}
    print(f"torch {torch.__version__}, {args.threads} threads, {args.pairs} pairs")
    print(f"{'case':16} {'tokens/s':>9} {'x plain':>8} {'peak MiB':>9} {'x plain':>8}")
    for name in args.case:
        row = results[name] = pair(cases[name], args.pairs, args.threads, args.against)
        speed, peak = row["tokens_per_second"]["ours"], row["peak_bytes"]["ours"] / 2**20
        print(f"{name:16} {speed:9,.0f} {row['speed']:8.2f} {peak:9,.0f} {row['memory']:8.2f}")
    if args.modes:
        for name in ("demo", "demo-bf16"):
            results[f"modes {name}"] = across(CASES[name], args.pairs, args.threads)
            for mode, ratio in results[f"modes {name}"].items():
                print(f"{name:16} {mode:20} {ratio:5.2f} x one process with all threads")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
