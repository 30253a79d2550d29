"""Saving and loading against a plain copy of the same bytes, and the pause of training at a save.

    python benchmarks/checkpoint.py [--ranks 2] [--width 512] [--turns 3] [--folder DIR] [--json F]

"copy": each rank reads, writes and fsyncs its files of a checkpoint. "save" computes digests,
fsyncs and reads the files back from the disk; "load" verifies digests, then reads. "DCP's own save"
only fsyncs. The contenders take turns on one disk; the reported ratio is the median over the turns.
The pause is the time that training waits for a save, with and without checkpoint.asynchronous;
steps during an asynchronous save are timed separately.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.save import layout_of, save
from engine.checkpoint.saver import Saver
from engine.runs.reporter import Reporter
from engine.training.trainer import Trainer
from engine.world.world import World
from tests.support.jobs import Job, run

CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 128
MAX_STEPS = 100
model = dict(n_layer=8, n_head=8, n_embd={width}, vocab_size=8192)
data = dict(type="synthetic")
log = dict(tensorboard=False)
eval = dict(every=0)
zero = dict(stage=1)
"""
STEPS = 12  # every fourth step saves


def copy(source: Path, target: Path, rank: int) -> None:
    """Copy and fsync this rank's files."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.name.startswith(f"__{rank}_") or (rank == 0 and not path.name.startswith("__")):
            with path.open("rb") as read, (target / path.name).open("wb") as written:
                shutil.copyfileobj(read, written, 1 << 22)
                written.flush()
                os.fsync(written.fileno())


def plain_dcp(saver: Saver, folder: Path) -> None:
    """Save with DCP's default planner and writer, without digests or verification."""
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    writer = FileSystemWriter(folder, sync_files=True)
    state_dict_saver.save(saver._state_tensors(), storage_writer=writer, planner=planner)


def timed(task: Callable[[], object]) -> float:
    """Run the task on all ranks and return the seconds until the last rank has finished."""
    dist.barrier()
    started = time.perf_counter()
    task()
    dist.barrier()
    return time.perf_counter() - started


def throughput(turns: int, run: Trainer, saver: Saver) -> dict[str, Any]:
    """Train a step; return the seconds of each contender by turn and the bytes of all files."""
    run.step(1)
    rank, ranks = run.world.rank, run.world.size
    training, layout = (
        saver._training_state(1, None),
        layout_of(run.plan.settings, run.plan.layout.data),
    )
    checkpoints, copy_folder, dcp_folder = (
        CheckpointDirectory(Path("checkpoints")),
        Path("copy"),
        Path("dcp"),
    )
    folder, seconds, total = checkpoints.folder(1), dict[str, list[float]](), 0

    def load() -> None:
        checkpoint = SavedCheckpoint(folder)
        assert checkpoint.verify(rank, ranks) == []
        checkpoint.load_model(run.model)
        checkpoint.load_optimizer(run.model, run.stepper.optimizer)

    contenders: dict[str, Callable[[], object]] = {
        "save": lambda: save(
            checkpoints, saver._state_tensors(), training, layout=layout, group=run.world.cpu_group
        ),
        "copy": lambda: copy(folder, copy_folder, rank),
        "load": load,
        "DCP's own save": lambda: plain_dcp(saver, dcp_folder),
    }
    for turn in range(turns + 1):
        for name, task in contenders.items():
            duration = timed(task)
            if turn:  # the first turn is warm-up
                seconds.setdefault(name, []).append(duration)
        if run.world.is_main:
            total = sum(path.stat().st_size for path in folder.iterdir())
            for path in (checkpoints.path, copy_folder, dcp_folder):
                shutil.rmtree(path)
        dist.barrier()
    return {"bytes": total, "seconds": seconds}


def pauses(run: Trainer, saver: Saver) -> dict[str, Any]:
    """Return the seconds of steps without a save, of steps during a save, and of pauses."""
    seconds: dict[str, list[float]] = {"step": [], "step beside a save": [], "pause": []}
    for step in range(1, STEPS + 1):
        duration = timed(lambda step=step: run.step(step))  # type: ignore[misc]
        pause = timed(
            lambda step=step: saver.on_step_end(step, 0.0, None, requested=False, last=False)  # type: ignore[misc]
        )
        if step > 1:
            seconds["step beside a save" if step % 4 == 1 else "step"].append(duration)
        if step % 4 == 0:
            seconds["pause"].append(pause)
    return seconds


@contextlib.contextmanager
def measuring(task: Callable[[Trainer, Saver], Any], name: str, world: World) -> Iterator[None]:
    """Run the task in place of training; rank 0 writes its result to the file ``name``."""

    def steps(run: Trainer, report: Reporter, saver: Saver) -> int:
        result = task(run, saver)
        if world.is_main:
            Path(name).write_text(json.dumps(result))
        return run.steps

    with (
        patch("engine.train.train_steps", steps),
        patch("engine.train.save_weights"),
        patch("engine.train.print_end_of_run"),
    ):
        yield


def measured(folder: Path, ranks: int, task: Callable[..., Any], *overrides: str) -> dict[str, Any]:
    measurement = partial(measuring, task, "found.json")
    ended = run(Job(folder=folder, overrides=overrides, planted=measurement), ranks)
    assert not any(one.error for one in ended), ended
    result: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: TMPDIR")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "tiny.py").write_text(CONFIG.format(width=args.width))
        speed = measured(folder, args.ranks, partial(throughput, args.turns))
        every = ("checkpoint.every=4", "checkpoint.keep=1")
        held = {
            "in line": measured(folder, args.ranks, pauses, *every),
            "beside": measured(folder, args.ranks, pauses, *every, "checkpoint.asynchronous=True"),
        }
    size, seconds = speed["bytes"], speed["seconds"]
    print(f"{size / 2**20:,.0f} MiB by {args.ranks} ranks")
    for task, duration in seconds.items():
        ratio = statistics.median(c / t for c, t in zip(seconds["copy"], duration, strict=True))
        rate = size / statistics.median(duration) / 1e6
        print(f"{task:16} {rate:8,.0f} MB/s   {ratio:.2f} of a copy's throughput")
    for way, times in held.items():
        median = {what: f"{1e3 * statistics.median(some):,.0f} ms" for what, some in times.items()}
        print(
            f"{way:8} pause {median['pause']}; a step {median['step']}, beside a save "
            f"{median['step beside a save']}"
        )
    if args.json:
        args.json.write_text(json.dumps({"throughput": speed, "pauses": held}, indent=2) + "\n")


if __name__ == "__main__":
    main()
