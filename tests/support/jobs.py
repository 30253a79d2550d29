"""Complete training runs in processes of a test: train_gpt.py after the parsing of its
arguments."""

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
from engine.data.batches.loader import Batch, TrainBatches
from engine.errors import RunError, UserError
from engine.faults import Fault, parse_fault
from engine.plan import make_plan
from engine.runs.folder import RunFolder
from engine.runs.restart import restart_of_launch
from engine.runs.start_candidates import StartOptions
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
    """A run in ``folder``, which contains its config as tiny.py.

    Attributes:
        launch: name of the launch, the same after a restart.
        dies: all ranks are killed in the middle of this step.
        dies_saved: they are killed only once there is a checkpoint.
        planted: a context manager that every rank enters before it trains.
        fault: value of the variable FAULT.
    """

    folder: Path
    overrides: tuple[str, ...] = ()
    options: StartOptions = field(default_factory=StartOptions)
    launch: str | None = None
    dies: int | None = None
    dies_saved: bool = False
    planted: Planted = contextlib.nullcontext
    fault: str = ""

    def said(self, ranks: int) -> str:
        """Return the stderr of the ranks, including killed ones."""
        return "".join((self.folder / f"stderr-{rank}").read_text() for rank in range(ranks))


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Result of a rank: the kind of its error, if any, and its output. ``batches``: step -> digests
    of the data that it read."""

    error: str
    out: str
    err: str
    batches: dict[int, list[str]]


@contextlib.contextmanager
def without_sample(world: World) -> Iterator[None]:
    """Patch the end of a run to print no sample, which takes longer than a tiny training."""
    with patch("engine.end_of_run.SAMPLE_BYTES", 0):
        yield


def into_run(folder: Path, *overrides: str, **more: Any) -> Job:
    """Return the job of the tiny training, into RUN of a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.py").write_text(TINY)
    return Job(folder=folder, overrides=overrides, **{"options": StartOptions(output=RUN), **more})


def checkpoints_of(folder: Path, run: Path = RUN) -> CheckpointDirectory:
    """Return the checkpoints of the run in a folder."""
    return CheckpointDirectory(RunFolder(folder / run).checkpoints)


def run(job: Job, ranks: int = 1) -> list[Ended]:
    """Run a job and return the result of every rank; [] if they were killed."""
    try:
        return run_all([job], ranks)[0]
    except WorldError as error:
        if job.dies is None or {*error.failures.values()} != {"died without a word"}:
            raise
        return []


def run_all(jobs: Sequence[Job], ranks: int = 1) -> list[list[Ended]]:
    """Run several jobs one after another in the same processes, and return their results."""
    with contextlib.ExitStack() as held:
        ports = [held.enter_context(free_port()) for _ in jobs]
        by_rank = run_world(ranks, ranks_of, list(zip(jobs, ports, strict=True)), open_group=False)
    return [list(ended) for ended in zip(*by_rank, strict=True)]


def ranks_of(rank: int, size: int, jobs: list[tuple[Job, int]]) -> list[Ended]:
    return [rank_of(rank, size, job, port) for job, port in jobs]


def rank_of(rank: int, size: int, job: Job, port: int) -> Ended:
    """Run one rank of a job."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.chdir(job.folder)
    launcher = "by hand" if job.launch is None else "Slurm"
    launch_info = LaunchInfo(
        rank=rank, size=size, host=LOOPBACK, port=port, launcher=launcher, launch_id=job.launch
    )

    def plan() -> Any:
        return make_plan("tiny.py", gpus=size, overrides=job.overrides, environ={})

    out, fault = io.StringIO(), parse_fault(job.fault, rank, launch_info.attempt)
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
            with open_world(plan, launch_info, restart=again) as world, job.planted(world):
                fault = fault or witness(job.fault, world)
                train(world, job.options, cache=job.folder / "cache", fault=fault)
        except (UserError, RunError) as error:
            ended = "UserError" if isinstance(error, UserError) else "RunError"
        err.seek(0)
        return Ended(error=ended, out=out.getvalue(), err=err.read(), batches=batches)


@dataclass
class Witness(Fault):
    """A rank at the step where rank ``victim`` is suspended: waits until it is, and uses a short
    timeout from then on. Before that, a busy machine may delay any rank."""

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
    """Return the fault of the other ranks if one is to be suspended."""
    if not fault.startswith("stop"):
        return None
    kind, victim, step = fault.split(":")
    _, _, moment = kind.partition("-")
    return Witness(kind, moment, int(step), world=world, victim=int(victim))


def lose_patience(world: World) -> None:
    """Set the timeout of this rank to ``PATIENCE`` seconds."""
    world.control_plane.use_step_timeout(PATIENCE)
    world.colossal.set_timeouts(PATIENCE)


def _stderr(rank: int, job: Job) -> TextIO:
    """Open a file for stderr if the rank may be killed, so that its output survives; else a
    buffer."""
    return Path(f"stderr-{rank}").open("w+", buffering=1) if job.fault else io.StringIO()


def digest(batch: Batch) -> str:
    return sha256(b"".join(tensor.numpy().tobytes() for tensor in batch)).hexdigest()


def _recorded(read: Callable[..., Batch], batches: dict[int, list[str]]) -> Callable[..., Batch]:
    def batch(self: TrainBatches, step: int, turn: int, data_rank: int) -> Batch:
        read_batch = read(self, step, turn, data_rank)
        batches.setdefault(step, []).append(digest(read_batch))
        return read_batch

    return batch


def _mortal(healthy: Callable[..., StepResult], job: Job) -> Callable[..., StepResult]:
    def step(self: Trainer, step: int, **more: Any) -> StepResult:
        outcome = healthy(self, step, **more)
        if step == job.dies:  # weights are new, and the step is neither logged nor saved
            while job.dies_saved and not saved():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome

    return step


def saved() -> bool:
    """Return whether a run in this folder has a checkpoint; an asynchronous save may be in
    progress."""
    return any(Path("runs").glob("*/checkpoints/step-" + "[0-9]" * 8))
