"""The pipeline bubble, and tokens/s against torch's own 1F1B on the same stages.

    python benchmarks/pipeline.py [--steps 5] [--micro-batches 2 4 8] [--json FILE]

Two ranks with a thread each. Idle is 1 - busy / (2 x makespan); busy is the time of both ranks
without waits for messages. The formula is (p - 1) / (m + p - 1). Contenders take turns, step by
step; the reported ratio is the median over pairs of steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from engine.data.batches.loader import Batch
from engine.estimate.flops import smallest_matmul_flops
from engine.pipeline.schedule import Costs, PipelineShape, actions, idle_fraction
from engine.training.gradients import GradientReducer
from engine.training.matmuls import MATMULS, choose_matmul
from engine.training.pipeline import Observe, Pipeline, _PipelineRun, scaled_loss, unobserved
from models.chunks import ModelChunks
from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.collectives import Axis, Traffic
from models.parallel.context import ParallelContext
from models.parallel.registry import modes
from models.stage_split import chunks_of, virtual_stages
from tests.support.worlds import run_world

RANKS, SAMPLES, LENGTH = 2, 2, 256
# A small vocabulary, so that the head costs little and the stages are balanced.
SIZES = GPTConfig(
    n_layer=8, n_head=6, n_embd=384, head_dim=64, n_inner=1536, vocab_size=256, block_size=LENGTH
)
OURS = ("1f1b", "gpipe", "zero_bubble")


@dataclass
class WaitTimer:
    """The seconds that a rank waited for messages in a step."""

    waited: float = 0.0


class Watched(Pipeline):
    """A pipeline that measures its waits for messages."""

    watch = WaitTimer()

    def train(
        self,
        batches: Sequence[Batch],
        seeds: Sequence[int],
        scale: float,
        reducer: GradientReducer,
        observe: Observe = unobserved,
    ) -> Tensor:
        watch = self.watch

        class Timed(_PipelineRun):
            def _received(self, key: Any) -> Tensor:
                started = time.perf_counter()
                tensor = super()._received(key)
                watch.waited += time.perf_counter() - started
                return tensor

        one = Timed(self, batches, seeds, scaled_loss(scale), reducer, observe=observe)
        return one.run(self.plan(len(batches), True))


class TorchStage(nn.Module):
    """A stage of ours with the interface of torch.distributed.pipelining."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, x: Tensor) -> Tensor:
        gpt = self.gpt
        y: Tensor = gpt(gpt.embed(x) if gpt.first else x, LENGTH)
        return y


def contenders(rank: int, micro_batches: int) -> dict[str, Callable[[], float]]:
    """Build the contenders: functions that run a step and return the seconds waited, by name."""
    traffic = Traffic()
    single = {
        name: Axis(name=name, size=1, index=0, group=None, traffic=traffic)
        for name in ("tensor", "data")
    }
    pipeline = Axis(
        name="pipeline", size=RANKS, index=rank, group=dist.group.WORLD, traffic=traffic
    )
    flops = smallest_matmul_flops(SIZES, SAMPLES * LENGTH, 1)
    backend = choose_matmul(torch.float32, torch.device("cpu"), flops)
    parallel = ParallelContext(
        mode=modes()["serial"],
        axes={**single, "pipeline": pipeline, "world": pipeline},
        matmul=MATMULS[backend],
    )
    stages = virtual_stages(SIZES, LENGTH, RANKS, balanced=True)
    (layers,) = chunks_of(stages, rank, RANKS)
    model = ModelChunks([GPT(SIZES, parallel, layers=layers)], stages)
    model.initialise(1)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, SIZES.vocab_size, (micro_batches * SAMPLES, LENGTH + 1), generator=draw)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    scale = 1 / targets.numel()
    batches = list(zip(inputs.chunk(micro_batches), targets.chunk(micro_batches), strict=True))
    sums = GradientReducer(model)

    def ours(schedule: str) -> Callable[[], float]:
        runs = Watched(model, pipeline, schedule)
        runs.watch = WaitTimer()

        def step() -> float:
            sums.zero()
            runs.watch.waited = 0.0
            runs.train(batches, [0] * micro_batches, scale, sums)
            return runs.watch.waited

        return step

    gpt = model[0]
    stage = PipelineStage(TorchStage(gpt), rank, RANKS, torch.device("cpu"))
    theirs = Schedule1F1B(
        stage,
        micro_batches,
        loss_fn=lambda y, expected: gpt.loss(y, expected, scale),
        scale_grads=False,
    )

    def torchs() -> float:
        sums.zero()
        if rank == 0:
            theirs.step(inputs)
        else:
            theirs.step(target=targets)
        return 0.0

    return {**{name: ours(name) for name in OURS}, "torch 1f1b": torchs}


def measure(rank: int, size: int, micro_batches: int, steps: int) -> dict[str, list[list[float]]]:
    """Return, by contender, (seconds, seconds in which this rank was busy) of each step."""
    seconds: dict[str, list[list[float]]] = {}
    steppers = contenders(rank, micro_batches)
    for turn in range(steps + 1):
        for name, step in steppers.items():
            dist.barrier()
            started = time.perf_counter()
            waited = step()
            busy = (
                time.perf_counter() - started - waited
            )  # before the barrier waits for the other rank
            dist.barrier()
            if turn:  # the first turn is warm-up
                seconds.setdefault(name, []).append([time.perf_counter() - started, busy])
    return seconds


def report(micro_batches: int, steps: int) -> dict[str, Any]:
    by_rank = run_world(RANKS, measure, micro_batches, steps, timeout=900)
    shape = PipelineShape(ranks=RANKS, micro_batches=micro_batches)
    rows: dict[str, Any] = {}
    for name in by_rank[0]:
        seconds = [step[0] for step in by_rank[0][name]]
        row: dict[str, Any] = {
            "seconds": statistics.median(seconds),
            "tokens_per_second": micro_batches * SAMPLES * LENGTH / statistics.median(seconds),
            "against_torch": statistics.median(
                theirs[0] / mine
                for theirs, mine in zip(by_rank[0]["torch 1f1b"], seconds, strict=True)
            ),
        }
        if name in OURS:
            orders = [actions(name, shape, rank) for rank in range(RANKS)]
            row["formula"] = idle_fraction(orders, [Costs()] * RANKS, shape)
            row["idle"] = statistics.median(
                1 - sum(ranks[name][step][1] for ranks in by_rank) / (RANKS * seconds[step])
                for step in range(steps)
            )
            row["ms_a_micro_batch"] = 1e3 * row["seconds"] * (1 - row["idle"]) / micro_batches
        rows[name] = row
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {m: report(m, args.steps) for m in args.micro_batches}
    print(
        f"{'m':>3} {'schedule':12} {'idle':>6} {'formula':>8} {'tokens/s':>9} {'x torch 1f1b':>13}"
    )
    for m, rows in results.items():
        for name, row in rows.items():
            idle = f"{row['idle']:6.3f} {row['formula']:8.3f}" if "idle" in row else " " * 15
            speed, ratio = row["tokens_per_second"], row["against_torch"]
            print(f"{m:3} {name:12} {idle} {speed:9,.0f} {ratio:13.3f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
