"""The benchmark sets of other trainers, each as one table.

    python benchmarks/trainers.py image [--ranks N] [--steps N] [--data PATH] [KEY=VALUE ...]

image: TorchShard's image GPT (12 layers of 256, 1,023 pixels of 512 colours) trained in six ways on
the same ranks, at an equal global batch of 16 images: time of a step, peak memory of each rank and
loss. Settings make it smaller, such as model.n_layer=2. Ranks are processes of this machine that
exchange by gloo. Without --data the images are drawn by a formula.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.estimate.estimate import estimate
from engine.formatting import format_bytes
from engine.plan import make_plan
from engine.training.memory import peak_bytes
from tests.support.image_data import drawn, write_cifar
from tests.support.runs import open_run
from tests.support.worlds import run_world

CONFIG = Path(__file__).parents[1] / "gpt_configs" / "image_dp.py"
BATCH = 16
DRAWN = 64
"""Images that are drawn if none are given."""


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """The measurements of one rank."""

    seconds: list[float]
    """Of each step but the first."""
    loss: float
    """Of the last step."""
    peak: int
    """Highest resident set, bytes, imports included."""


def image_ways(ranks: int) -> Mapping[str, Sequence[str]]:
    """Return the settings of each way to train on ``ranks``. ZeRO shards over data-parallel ranks,
    so with tensor parallelism it takes two of them."""
    tensor = [f"TENSOR_PARALLEL={ranks}", "MODE=1d"]
    half = [f"TENSOR_PARALLEL={ranks // 2}", "MODE=1d"]
    amp, zero = ["precision=fp16"], ["zero.stage=1"]
    return {
        "DDP": [],
        "TP": tensor,
        "DDP + AMP": amp,
        "DDP + ZeRO": zero,
        "TP + AMP": tensor + amp,
        "TP + ZeRO": half + zero,
    }


def measure(rank: int, size: int, overrides: Sequence[str], cache: str, steps: int) -> MeasuredRun:
    """Train on one of ``size`` ranks."""
    torch.set_num_threads(1)
    run = open_run(rank, size, CONFIG, (*overrides, f"data.cache={cache}"), steps=steps + 1)
    seconds, loss = [], 0.0
    for step in range(1, steps + 2):
        started = time.perf_counter()
        loss = run.step(step).loss
        seconds.append(time.perf_counter() - started)
    return MeasuredRun(seconds=seconds[1:], loss=loss, peak=peak_bytes(run.device))


def image(ranks: int, steps: int, data: str | None, overrides: Sequence[str]) -> None:
    """Measure the six ways and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            data = f"{folder}/data_batch_1.bin"
            write_cifar(Path(data), drawn(DRAWN))
        shared = [f"GLOBAL_BATCH_SIZE={BATCH}", f"data.path={data}", "eval.split=train"]
        print(f"torch {torch.__version__}, {ranks} ranks, {BATCH} images a step, {steps} steps")
        print(f"{'':12} {'s/step':>8} {'loss':>8} {'predicted':>12}  peak memory of each rank")
        for name, way in image_ways(ranks).items():
            settings = [*shared, *way, *overrides]
            plan = make_plan(CONFIG, gpus=ranks, overrides=settings, environ={})
            predicted = estimate(plan, device="cpu").fullest.memory.total
            found = run_world(ranks, measure, settings, folder, steps, timeout=3600)
            slowest = [max(times) for times in zip(*(one.seconds for one in found), strict=True)]
            peaks = " ".join(format_bytes(one.peak) for one in found)
            print(
                f"{name:12} {statistics.median(slowest):8.2f} {found[0].loss:8.4f} "
                f"{format_bytes(predicted):>12}  {peaks}",
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("set", choices=["image"])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--ranks", type=int, default=4, choices=[4, 8])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--data", help="files of images, as in data.path")
    args = parser.parse_intermixed_args(argv)
    image(args.ranks, args.steps, args.data, args.overrides)


if __name__ == "__main__":
    main()
