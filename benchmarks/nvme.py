"""Optimizer states on a disk: throughput against a plain copy, and time against host memory.

    python benchmarks/nvme.py FOLDER [--parameters 64e6] [--memory BYTES] [--rounds 9] [--json FILE]

FOLDER is on the disk to measure. ``copy`` reads and writes as many bytes as the states have, block
by block without the page cache, like ``dd iflag=direct oflag=direct``. ``transfers``
moves the same bytes through a slot file in the order of a step, without an update; ``update`` is a
step of AdamW on them, ``training`` a step of a GPT, with the states on the host, on the disk, or on
the disk together with the weights. Contenders take turns; the reported ratio is the median over
rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from torch import nn

from engine.config.sections.optimizer import OptimizerSettings
from engine.estimate.flops import smallest_matmul_flops
from engine.nvme.disk import Disk, open_disk
from engine.nvme.io_libraries import tensornvme
from engine.nvme.offloaded_weights import WeightsOnDisk
from engine.nvme.page_buffers import Buffer
from engine.nvme.slot_file import LIBRARIES, SlotFile, open_slot_file
from engine.nvme.streamed_optimizer import StreamedOptimizer
from engine.optim.optimizer import ResidentOptimizer
from engine.optim.parameter_groups import NamedParameter
from engine.optim.registry import build_optimizer
from engine.training.build import named_parameters
from engine.training.gradients import GradientReducer
from engine.training.matmuls import MATMULS, choose_matmul
from engine.training.pipeline import Pipeline
from engine.training.step import Stepper
from models.chunks import ModelChunks
from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.context import ParallelContext
from models.parallel.zero import Zero

BLOCK = 16 * 2**20
WIDTH = 4096
SAMPLES, LENGTH = 8, 128
SIZES = GPTConfig(
    n_layer=6, n_head=8, n_embd=512, head_dim=64, n_inner=2048, vocab_size=8192, block_size=LENGTH
)
Work = Callable[[], object]


class Bench:
    """Contenders on one disk. ``stack`` closes the disks and slot files that they open."""

    def __init__(self, folder: Path, memory: int, stack: ExitStack) -> None:
        self.folder, self.memory, self.stack = folder, memory, stack
        self.work: dict[str, Work] = {}

    def disk(self, name: str) -> Disk:
        return self.stack.enter_context(open_disk(self.folder, name))

    def streamed(
        self, disk: Disk, kind: str | None, named: Sequence[NamedParameter], *more: WeightsOnDisk
    ) -> StreamedOptimizer:
        """Build an AdamW with its states, and the weights if given, on the disk."""

        def opened(sizes: Sequence[int]) -> SlotFile:
            slots = open_slot_file(disk, sizes, kind)
            self.stack.callback(slots.close)
            return slots

        return StreamedOptimizer(
            build_optimizer(OptimizerSettings(), named),
            states=2,
            divisible=True,
            memory=self.memory,
            open_slot_file=opened,
            weights=more[0] if more else None,
        )

    def measure(self, rounds: int) -> dict[str, list[float]]:
        """Run each contender in turn and return its seconds in each round."""
        for work in self.work.values():
            work()
            work()
        seconds: dict[str, list[float]] = {name: [] for name in self.work}
        for _ in range(rounds):
            for name, work in self.work.items():
                started = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - started)
        return seconds


def copier(disk: Disk, size: int) -> Work:
    """Reserve and fill a file of ``size`` bytes and return a function that copies it."""
    blocks = -(-size // BLOCK)
    paths = [disk.reserve(name, blocks * BLOCK) for name in ("there", "back")]
    memory = Buffer(BLOCK).tensor(0, BLOCK).numpy().data
    source, target = (os.open(path, os.O_RDWR | os.O_DIRECT) for path in paths)
    for block in range(blocks):  # the reserved blocks are unwritten
        os.pwritev(source, [memory], block * BLOCK)

    def copy() -> None:
        for block in range(blocks):
            os.preadv(source, [memory], block * BLOCK)
            os.pwritev(target, [memory], block * BLOCK)

    return copy


def add_updates(bench: Bench, parameters: int, kinds: Sequence[str]) -> int:
    """Add the copy, and the transfers and updates of each I/O library.

    Returns the bytes of the states.
    """
    named = []
    for number in range(max(1, parameters // WIDTH**2)):
        weight = nn.Parameter(torch.ones(WIDTH, WIDTH))
        weight.grad = torch.full_like(weight, 1e-3)
        named.append(NamedParameter(str(number), weight, "linear"))
    size = sum(2 * one.parameter.nbytes for one in named)
    bench.work["copy"] = copier(bench.disk("copy"), size)
    bench.work["host update"] = build_optimizer(OptimizerSettings(), named).step
    for kind in kinds:
        streamed = bench.streamed(bench.disk(kind), kind, named)

        def update(streamed: StreamedOptimizer = streamed) -> None:
            streamed.step()
            streamed._buffers.wait()  # the last write, which a run overlaps with the next step

        def transfers(streamed: StreamedOptimizer = streamed) -> None:
            for _ in streamed._buffers:
                pass
            streamed._buffers.wait()

        bench.work[f"{kind} update"] = update
        bench.work[f"{kind} transfers"] = transfers
    return size


def add_training(bench: Bench) -> None:
    """Add training steps of a GPT with ZeRO-3 on one rank."""
    ids = torch.arange(SAMPLES * (LENGTH + 1)).view(SAMPLES, -1) * 7919 % SIZES.vocab_size
    batch = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    device = torch.device("cpu")
    single = ParallelContext.single_device(device, dtype=torch.float32, compute=torch.float32)
    flops = smallest_matmul_flops(SIZES, SAMPLES * LENGTH, 1)
    for where in ("host", "disk", "disk with weights"):
        disk = bench.disk(where)
        weights = (
            WeightsOnDisk(disk=disk, prefetch_bytes=bench.memory) if "weights" in where else None
        )
        parallel = replace(
            single,
            zero=Zero(stage=3, axes=(single.axes["data"],), caches_shards=weights is None),
            matmul=MATMULS[choose_matmul(torch.float32, device, flops)],
            offload_device=device,
            weight_storage=weights,
        )
        model = ModelChunks([GPT(SIZES, parallel)])
        model.initialise(1)
        named = named_parameters(model)
        optimizer = (
            ResidentOptimizer(build_optimizer(OptimizerSettings(), named), model.named_parameters())
            if where == "host"
            else bench.streamed(disk, None, named, *([weights] if weights else []))
        )
        stepper = Stepper(
            model=model,
            pipeline=Pipeline(model, parallel.axes["pipeline"], "1f1b"),
            optimizer=optimizer,
            gradients=GradientReducer(model),
            world=parallel.axes["world"],
            seed=1,
        )
        steps = count(1)

        def train(stepper: Stepper = stepper, steps: count[int] = steps) -> None:
            stepper.run(next(steps), [batch], targets=batch[1].numel(), lr=1e-4)

        bench.work[f"{where} training"] = train


def ratios(seconds: dict[str, list[float]], kinds: Sequence[str]) -> dict[str, float]:
    """Return the median ratios over the rounds.

    ``overlap``: concurrent time of update and transfers, as a share of the shorter of the two.
    """
    by_name: dict[str, list[float]] = {}
    for values in zip(*seconds.values(), strict=True):
        now = dict(zip(seconds, values, strict=True))
        for kind in kinds:
            moved, both, update = (
                now[f"{x}"] for x in (f"{kind} transfers", f"{kind} update", "host update")
            )
            rows = {
                "throughput / copy's": now["copy"] / moved,
                "throughput with the update / copy's": now["copy"] / both,
                "update / host's": both / update,
                "overlap": (moved + update - both) / min(moved, update),
            }
            for name, value in rows.items():
                by_name.setdefault(f"{kind}: {name}", []).append(value)
        for where in ("disk", "disk with weights"):
            ratio = now[f"{where} training"] / now["host training"]
            by_name.setdefault(f"{where}: training step / host's", []).append(ratio)
    return {name: statistics.median(values) for name, values in by_name.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parameters", type=float, default=64e6)
    parser.add_argument("--memory", type=int, default=2**28)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kinds = [kind for kind in LIBRARIES if kind != "tensornvme" or tensornvme.problem() is None]
    with ExitStack() as stack:
        bench = Bench(args.folder, args.memory, stack)
        size = add_updates(bench, int(args.parameters), kinds)
        add_training(bench)
        seconds = bench.measure(args.rounds)
    rows = ratios(seconds, kinds)
    for name, times in seconds.items():
        print(f"{name:40} {statistics.median(times):8.3f} s")
    for name, ratio in rows.items():
        print(f"{name:60} {ratio:6.2f}")
    if args.json:
        report = {"states_bytes": size, "seconds": seconds, "ratios": rows}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
