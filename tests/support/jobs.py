"""Whole training runs in processes of a test: what train_gpt.py does once it has its arguments."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch

from engine.checkpoint.directory import CheckpointDirectory
from engine.data.loader import Batch, TrainBatches
from engine.errors import RunError, UserError
from engine.faults import Fault, parse_fault
from engine.plan import make_plan
from engine.runs.folder import RunFolder
from engine.runs.restart import restart_of_launch
from engine.runs.resume_candidates import StartOptions
from engine.train import train
from engine.training.step import StepResult
from engine.training.trainer import Trainer
from engine.world.coordination.launch_environment import LOOPBACK, LaunchInfo
from engine.world.coordination.liveness import RankProcess
from engine.world.distributed import open_world
from engine.world.world import World
from tests.support.worlds import WorldError, free_port, run_world

Planted = Callable[[World], contextlib.AbstractContextManager[Any]]

TINY = """
BATCH_SIZE = 4
SEQ_LEN = 8
MAX_STEPS = 4
model = dict(n_layer=2, n_head=4, n_embd=16, vocab_size=33)
data = dict(type="synthetic")
optimizer = dict(lr=0.01)
log = dict(tensorboard=False)
checkpoint = dict(every=2)
eval = dict(every=0)
timeout = 300
start_timeout = 300
"""
RUN = Path("run")
PATIENCE = 1.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run in ``folder``, where its config is tiny.py. ``launch_id`` is what a launcher calls it,
    the same over restarts. All ranks are killed in the middle of step ``dies``, once there is a
    checkpoint where it ``dies_saved``. ``parse_fault`` is entered on every rank before it trains.
    ``fault``: as FAULT in the environment."""

    folder: Path
    overrides: tuple[str, ...] = ()
    options: StartOptions = field(default_factory=StartOptions)
    launch: str | None = None
    dies: int | None = None
    dies_saved: bool = False
    planted: Planted = contextlib.nullcontext
    fault: str = ""

    def said(self, ranks: int) -> str:
        """What the ranks said on stderr, those that were killed too."""
        return "".join((self.folder / f"stderr-{rank}").read_text() for rank in range(ranks))


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a rank ended: the kind of error, if any, and what it said. ``batches``: step -> digests
    of what it read."""

    error: str
    out: str
    err: str
    batches: dict[int, list[str]]


@contextlib.contextmanager
def without_sample(world: World) -> Iterator[None]:
    """A run of text ends without a sample of it, which takes longer than a tiny training."""
    with patch("engine.end_of_run.SAMPLE_BYTES", 0):
        yield


def into_run(folder: Path, *overrides: str, **more: Any) -> Job:
    """The tiny training, into RUN of a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.py").write_text(TINY)
    return Job(folder=folder, overrides=overrides, **{"options": StartOptions(output=RUN), **more})


def checkpoints_of(folder: Path, run: Path = RUN) -> CheckpointDirectory:
    """The checkpoints of a run there."""
    return CheckpointDirectory(RunFolder(folder / run).checkpoints)


def run(job: Job, ranks: int = 1) -> list[Ended]:
    """Every rank's end; none where they were killed."""
    try:
        return run_all([job], ranks)[0]
    except WorldError as error:
        if job.dies is None or {*error.failures.values()} != {"died without a word"}:
            raise
        return []


def run_all(jobs: Sequence[Job], ranks: int = 1) -> list[list[Ended]]:
    """The same of jobs that the same processes do one after another."""
    with contextlib.ExitStack() as held:
        ports = [held.enter_context(free_port()) for _ in jobs]
        by_rank = run_world(ranks, ranks_of, list(zip(jobs, ports, strict=True)), open_group=False)
    return [list(ended) for ended in zip(*by_rank, strict=True)]


def ranks_of(rank: int, size: int, jobs: list[tuple[Job, int]]) -> list[Ended]:
    return [rank_of(rank, size, job, port) for job, port in jobs]


def rank_of(rank: int, size: int, job: Job, port: int) -> Ended:
    """One rank of a job."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.chdir(job.folder)
    launcher = "by hand" if job.launch is None else "Slurm"
    place = LaunchInfo(
        rank=rank, size=size, host=LOOPBACK, port=port, launcher=launcher, launch_id=job.launch
    )

    def plan() -> Any:
        return make_plan("tiny.py", gpus=size, overrides=job.overrides, environ={})

    out, fault = io.StringIO(), parse_fault(job.fault, rank, place.attempt)
    batches: dict[int, list[str]] = {}
    ended = ""
    with (
        contextlib.redirect_stdout(out),
        _stderr(rank, job) as err,
        contextlib.redirect_stderr(err),
        patch.object(TrainBatches, "batch", _recorded(TrainBatches.batch, batches)),
        patch.object(Trainer, "step", _mortal(Trainer.step, job)),
    ):
        try:
            again = restart_of_launch(
                name="tiny", size=size, overrides=job.overrides, options=job.options
            )
            with open_world(plan, place, restart=again) as world, job.planted(world):
                fault = fault or witness(job.fault, world)
                train(world, world.plan, job.options, cache=job.folder / "cache", fault=fault)
        except (UserError, RunError) as error:
            ended = "UserError" if isinstance(error, UserError) else "RunError"
        err.seek(0)
        return Ended(error=ended, out=out.getvalue(), err=err.read(), batches=batches)


@dataclass
class Witness(Fault):
    """At the place where rank ``victim`` stops: waits until it is stopped, and has no patience from
    then on. Before that a rank may be as late as a busy machine makes it."""

    world: World
    victim: int

    def _trigger(self) -> None:
        if self._done:
            return
        self._done = True
        assert self.world.control_plane.failure_reporter.liveness is not None
        process = self.world.control_plane.failure_reporter.liveness.processes[self.victim]
        while process.state(RankProcess.current()) != "suspended":
            time.sleep(0.01)
        lose_patience(self.world)


def witness(fault: str, world: World) -> Witness | None:
    """For the other ranks, where one is to be stopped."""
    if not fault.startswith("stop"):
        return None
    kind, victim, step = fault.split(":")
    _, _, moment = kind.partition("-")
    return Witness(kind, moment, int(step), world=world, victim=int(victim))


def lose_patience(world: World) -> None:
    """This rank waits ``PATIENCE`` seconds for others from now on."""
    world.control_plane.use_step_timeout(PATIENCE)
    world.colossal.set_timeouts(PATIENCE)


def _stderr(rank: int, job: Job) -> TextIO:
    """In a file, of which something is left, where the rank may be."""
    return Path(f"stderr-{rank}").open("w+", buffering=1) if job.fault else io.StringIO()


def digest(batch: Batch) -> str:
    return sha256(b"".join(tensor.numpy().tobytes() for tensor in batch)).hexdigest()


def _recorded(read: Callable[..., Batch], batches: dict[int, list[str]]) -> Callable[..., Batch]:
    def batch(self: TrainBatches, step: int, turn: int, data_rank: int) -> Batch:
        found = read(self, step, turn, data_rank)
        batches.setdefault(step, []).append(digest(found))
        return found

    return batch


def _mortal(healthy: Callable[..., StepResult], job: Job) -> Callable[..., StepResult]:
    def step(self: Trainer, step: int, **more: Any) -> StepResult:
        outcome = healthy(self, step, **more)
        if step == job.dies:  # weights are new, and nothing has been told or saved of it
            while job.dies_saved and not saved():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome

    return step


def saved() -> bool:
    """Whether any run here has a checkpoint; one may be on its way beside the training."""
    return any(Path("runs").glob("*/checkpoints/step-" + "[0-9]" * 8))
