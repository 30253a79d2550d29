"""A training step against a plain PyTorch GPT-2 step, and every mode against one process.

    python benchmarks/step.py [--case NAME ...] [--pairs N] [--modes] [--json FILE]

The plain step is transformers' GPT2LMHeadModel (SDPA, dropout 0), cross_entropy and fused AdamW on
the same batches from the same weights; bf16 is autocast there and compute on float32 weights here.
Each contender has a process of its own, and they take turns step by step: ratios are of pairs, the
median is reported. Peak memory is the process' highest resident set, imports included (on CUDA what
torch allocated). Where CUDA is at hand both are compiled, at batch 64 x 1024.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.build import DTYPES, named_parameters
from engine.config import schema
from engine.flops import smallest_product
from engine.gradients import GradientSum
from engine.layout import Layout
from engine.matmuls import MATMULS, choose_matmul
from engine.memory import keep_freed_memory, peak_bytes
from engine.optim.registry import build_optimizer
from engine.pipeline import Pipeline
from engine.step import Stepper
from models.chunks import Chunks
from models.gpt import GPT
from models.hf import to_hf
from models.parallel.collectives import Traffic
from models.parallel.partition import Partition
from models.parallel.registry import modes
from models.sizes import Sizes
from tests.support.training import open_axes
from tests.support.worlds import run_world

Step = Callable[[], float]
"""Runs one step and returns its loss."""

OPTIMIZER = schema.Optimizer(lr=1e-4, weight_decay=0.1)
BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained: a model, ``samples`` of ``length`` tokens a step."""

    layers: int
    heads: int
    width: int
    vocabulary: int
    samples: int
    length: int
    precision: str = "float32"
    cuda: bool = False

    @property
    def sizes(self) -> Sizes:
        return Sizes(
            n_layer=self.layers,
            n_head=self.heads,
            n_embd=self.width,
            head_dim=self.width // self.heads,
            n_inner=4 * self.width,
            vocab_size=self.vocabulary,
            block_size=1024,
        )

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.cuda else "cpu")

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(0)
        shape = (BATCHES, self.samples, self.length + 1)
        ids = torch.randint(self.vocabulary, shape, generator=draw).to(self.device)
        return [(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) for batch in ids]


GPT2 = Case(layers=12, heads=12, width=768, vocabulary=50257, samples=4, length=256)
TRUNK = Case(layers=2, heads=4, width=128, vocabulary=50257, samples=8, length=256)
DEMO = Case(layers=4, heads=4, width=128, vocabulary=128, samples=16, length=128)
CASES = {
    "gpt2": GPT2,
    "gpt2-bf16": replace(GPT2, precision="bf16"),
    "vocabulary": TRUNK,
    "vocabulary-bf16": replace(TRUNK, precision="bf16"),
    "demo": DEMO,
    "demo-bf16": replace(DEMO, precision="bf16"),
}
ON_CUDA = {
    "gpt2-h": replace(GPT2, samples=64, length=1024, precision="bf16", cuda=True),
}


def stepper(case: Case, part: Partition, *, compiled: bool) -> Stepper:
    """Our step, over ``part``, in a process that is a run's."""
    keep_freed_memory()
    model = Chunks([GPT(case.sizes, part)])
    model.initialise(1)
    if compiled:
        for block in model[0].h.values():
            block.compile()
    return Stepper(
        model=model,
        pipeline=Pipeline(model, part.axes["pipeline"], "1f1b"),
        optimizer=build_optimizer(OPTIMIZER, named_parameters(model)),
        gradients=GradientSum(model),
        world=part.axes["world"],
        seed=3,
    )


def whole(case: Case) -> Partition:
    """One process, with the matmul that it would choose."""
    dtype, compute = DTYPES[case.precision]
    part = Partition.alone(case.device, dtype=dtype, compute=compute)
    flops = smallest_product(case.sizes, case.samples * case.length, 1)
    return replace(part, matmul=MATMULS[choose_matmul(compute, case.device, flops)])


def ours(case: Case) -> Step:
    runs, batches = stepper(case, whole(case), compiled=case.cuda), case.batches()
    number = 0

    def step() -> float:
        nonlocal number
        number += 1
        batch = batches[number % BATCHES]
        return runs.run(number, [batch], targets=batch[1].numel(), lr=OPTIMIZER.lr).loss

    return step


def plain(case: Case) -> Step:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = case.sizes
    config = GPT2Config(
        vocab_size=sizes.vocab_size,
        n_positions=sizes.block_size,
        n_embd=sizes.n_embd,
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model: Any = GPT2LMHeadModel(config)
    same = Chunks([GPT(sizes, Partition.alone(torch.device("cpu"), **FLOAT32))])
    same.initialise(1)
    state = to_hf(((n, p.detach()) for n, p in same.named_parameters()), sizes)
    model.load_state_dict(dict(state), strict=False)
    del same
    model.to(case.device)
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in model.parameters() if p.dim() > 1],
            "weight_decay": OPTIMIZER.weight_decay,
        },
        {"params": [p for p in model.parameters() if p.dim() < 2]},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=OPTIMIZER.lr,
        weight_decay=0.0,
        fused=True,
    )
    batches, number = case.batches(), 0
    forward = torch.compile(model) if case.cuda else model

    def step() -> float:
        nonlocal number
        number += 1
        ids, targets = batches[number % BATCHES]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(case.device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            logits = forward(ids).logits
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


FLOAT32: dict[str, Any] = {"dtype": torch.float32, "compute": torch.float32}
CONTENDERS = {"ours": ours, "plain": plain}


def serve(pipe: Connection, name: str, case: Case, threads: int) -> None:
    """A contender's process: a step for each message, then its peak memory."""
    torch.set_num_threads(threads)
    step = CONTENDERS[name](case)
    while pipe.recv():
        started = time.perf_counter()
        loss = step()
        pipe.send((time.perf_counter() - started, loss))
    pipe.send(peak_bytes(case.device))


@contextmanager
def contender(name: str, case: Case, threads: int) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, name, case, threads), daemon=True)
    process.start()
    try:
        yield mine
    finally:
        process.join(30)
        process.kill()


def pair(case: Case, pairs: int, threads: int) -> dict[str, Any]:
    """Ours against plain: ratios of tokens/s and of peak memory."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    losses: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with contender("ours", case, threads) as one, contender("plain", case, threads) as other:
        pipes = {"ours": one, "plain": other}
        for turn in range(pairs + 2):
            for name, pipe in pipes.items():
                pipe.send(True)
                taken, loss = pipe.recv()
                losses[name].append(loss)
                if turn >= 2:  # the first two warm up
                    seconds[name].append(taken)
        peaks = {}
        for name, pipe in pipes.items():
            pipe.send(False)
            peaks[name] = pipe.recv()
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    tokens = case.samples * case.length
    return {
        "tokens_per_second": {n: tokens / statistics.median(s) for n, s in seconds.items()},
        "speed": statistics.median(ratios),
        "peak_bytes": peaks,
        "memory": peaks["ours"] / peaks["plain"],
        "first_losses": {name: found[0] for name, found in losses.items()},
        "last_losses": {name: found[-1] for name, found in losses.items()},
    }


def cut(
    rank: int, size: int, case: Case, mode: str, depth: int, steps: int, threads: int
) -> list[float]:
    """Seconds of each step of one rank of ``size`` that cut every tensor as the mode does."""
    torch.set_num_threads(threads)
    layout = Layout(mode=modes()[mode], tensor=size, depth=depth)
    dtype, compute = DTYPES[case.precision]
    flops = smallest_product(case.sizes, case.samples * case.length, size)
    part = Partition(
        mode=layout.mode,
        axes=open_axes(layout, rank, Traffic()),
        dtype=dtype,
        compute=compute,
        matmul=MATMULS[choose_matmul(compute, torch.device("cpu"), flops)],
    )
    runs, batches, taken = stepper(case, part, compiled=False), case.batches(), []
    for number in range(1, steps + 2):
        ids, targets = batches[number % BATCHES]
        started = time.perf_counter()
        runs.run(number, [(ids, targets)], targets=targets.numel(), lr=OPTIMIZER.lr)
        taken.append(time.perf_counter() - started)
    return taken[1:]


def layouts() -> Iterator[Layout]:
    """One of each mode that cuts, at its smallest sizes above one process."""
    for mode in modes().values():
        for depth in (1, 2) if mode.uses_depth else (1,):
            for tensor in range(2, 9):
                if mode.axes(tensor, depth):
                    yield Layout(mode=mode, tensor=tensor, depth=depth)
                    break


def across(case: Case, pairs: int, threads: int) -> dict[str, float]:
    """Every mode's tokens/s against one process with ``threads``, at the same global batch."""
    found = {}
    for layout in layouts():
        ratios = []
        for _ in range(max(1, pairs // 3)):
            alone = run_world(1, cut, case, "serial", 1, 3, threads, timeout=600)[0]
            how = layout.mode.name, layout.depth
            ranks = run_world(layout.gpus, cut, case, *how, 3, 1, timeout=600)[0]
            ratios.append(statistics.median(alone) / statistics.median(ranks))
        name = f"{layout.mode.name} x {layout.tensor}"
        found[name + (f" depth {layout.depth}" if layout.mode.uses_depth else "")] = (
            statistics.median(ratios)
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cases = CASES | (ON_CUDA if torch.cuda.is_available() else {})
    parser.add_argument("--case", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--modes", action="store_true", help="every mode against one process")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {"torch": torch.__version__, "threads": args.threads}
    print(f"torch {torch.__version__}, {args.threads} threads, {args.pairs} pairs")
    print(f"{'case':16} {'tokens/s':>9} {'x plain':>8} {'peak MiB':>9} {'x plain':>8}")
    for name in args.case:
        row = results[name] = pair(cases[name], args.pairs, args.threads)
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
