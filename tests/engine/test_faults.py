"""Runs with planted faults: the error is printed once, with rank, step and cause, and recorded in
the run's folder; the last checkpoint is intact, and no process is left."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.errors import UserError
from engine.faults import parse_fault
from engine.runs.folder import RunFolder
from engine.runs.start_candidates import StartOptions
from engine.training.trainer import Trainer
from engine.world import signals
from engine.world.coordination import liveness
from engine.world.world import World
from tests.support.jobs import TINY, Ended, Job, lose_patience, run
from tests.support.worlds import WorldError

RUN = Path("run")


# The switch


def test_fault_occurs_on_a_single_rank_step_and_attempt() -> None:
    text = "kill:1:3,,raise-save:0:6"
    assert parse_fault("", 0, 0) is None
    assert [parse_fault(text, rank, 0) is None for rank in range(3)] == [True, False, True]
    assert [parse_fault(text, 0, attempt) is None for attempt in range(4)] == [
        *(True, True, False, True)
    ]
    fault = parse_fault(text, 0, 2)
    assert fault is not None
    assert (fault.kind, fault.moment, fault.step) == ("raise", "save", 6)


@pytest.mark.parametrize("text", ["kill", "kill:1", "die:1:3", "kill-lunch:1:3", "kill:x:3", "a b"])
def test_an_invalid_fault_is_rejected(text: str) -> None:
    with pytest.raises(UserError, match=r"^FAULT=.*: expected KIND:RANK:STEP.*kill, stop.*-save"):
        parse_fault(text, 0, 0)


def test_a_loss_fault_with_a_moment_of_a_save_is_rejected() -> None:
    with pytest.raises(UserError, match="nan changes the loss of a step"):
        parse_fault("nan-save:0:3", 0, 0)


# A rank that is lost


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "tiny.py").write_text(TINY)
    overrides = ("MAX_STEPS=9", "TENSOR_PARALLEL=2", "MODE=1d")
    return Job(folder=tmp_path, overrides=overrides, options=StartOptions(output=RUN))


def good_checkpoints(job: Job) -> list[int]:
    """Return the steps of the checkpoints, after verifying all of them."""
    directory = CheckpointDirectory(RunFolder(job.folder / RUN).checkpoints)
    for step in directory.steps():
        assert SavedCheckpoint(directory.folder(step)).verify() == []
    return directory.steps()


DEAD = r"is dead: killed, or out of memory"
SUSPENDED = r"is suspended \(SIGSTOP\) and did not respond within 1 s"


@pytest.mark.parametrize(
    ("fault", "ranks", "message"),
    [
        ("kill:1:5", 4, rf"step 5: rank 1 \(process \d+ on .*\) {DEAD}"),
        ("kill:0:5", 2, rf"step 5: rank 0 \(process \d+ on .*\) {DEAD}"),
        ("stop:1:5", 2, rf"step 5: rank 1 \(process \d+ on .*\) {SUSPENDED}"),
        ("stop:0:5", 4, rf"step 5: rank 0 \(process \d+ on .*\) {SUSPENDED}"),
        ("stop-save:1:6", 2, rf"step 6: rank 1 \(process \d+ on .*\) {SUSPENDED}"),
    ],
)
def test_a_dead_or_suspended_rank_is_reported_once(
    job: Job, fault: str, ranks: int, message: str
) -> None:
    with pytest.raises(WorldError) as caught:
        run(replace(job, fault=fault), ranks)
    victim = int(fault.split(":")[1])
    assert caught.value.failures == {victim: "died without a word"}, "all others left by themselves"
    said = job.said(ranks)
    assert re.fullmatch(message + "\n", said), said
    status = RunFolder(job.folder / RUN).read_status()
    assert (status["state"], status["message"]) == ("failed", said.rstrip())
    assert status["ended"]
    assert good_checkpoints(job) == [2, 4]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise:1:5", "rank 1: step 5: failed: RuntimeError: a planted fault"),
        ("raise:0:5", "rank 0: step 5: failed: RuntimeError: a planted fault"),
        ("nan:1:5", "(not finite on rank 1); the optimizer was not run"),
    ],
)
def test_a_failing_rank_reports_its_own_error(job: Job, fault: str, message: str) -> None:
    ended: list[Ended] = run(replace(job, fault=fault), 2)
    assert [one.error for one in ended] == ["RunError", "RunError"]
    said = job.said(2)
    assert said.count("Traceback") == ("raise" in fault)
    assert said.count(message) == 1
    assert message in said.splitlines()[-1]
    status = RunFolder(job.folder / RUN).read_status()
    assert status["state"] == "failed"
    assert message.removeprefix("rank 0: step 5: failed: ") in status["message"]
    assert good_checkpoints(job) == [2, 4]


@contextlib.contextmanager
def held_up(world: World, *, fails: bool = False) -> Iterator[None]:
    """Block rank 0 in its third step for longer than the timeout of the others."""
    healthy, begun = Trainer.step, Path("held-up")

    def step(self: Trainer, step: int, **more: Any) -> Any:
        if step == 3 and world.is_main:
            begun.touch()
            time.sleep(3600)
        if step == 3 and fails:
            raise ValueError("out of luck")
        if step == 3:
            while not begun.exists():
                time.sleep(0.01)
            lose_patience(world)
        return healthy(self, step, **more)

    seconds = 0.5 if world.is_main else liveness.EXIT_SECONDS
    with patch.object(Trainer, "step", step), patch.object(liveness, "EXIT_SECONDS", seconds):
        yield


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (True, r"rank 1: step 3: failed: ValueError: out of luck"),
        (
            False,
            r"step 3: rank 0 did not respond within 1 s: it is at .*test_faults.py:\d+, in step",
        ),
    ],
)
def test_a_blocked_rank_is_killed_and_the_reason_recorded(
    job: Job, fails: bool, message: str
) -> None:
    planted = functools.partial(held_up, fails=fails)
    with pytest.raises(WorldError) as caught:
        run(replace(job, fault="kill:0:99", planted=planted), 2)
    assert caught.value.failures == {0: "died without a word"}
    assert re.fullmatch(message, job.said(2).splitlines()[-1])
    status = RunFolder(job.folder / RUN).read_status()
    assert status["state"] == "failed"
    assert re.fullmatch(message, status["message"])
    assert status["step"] == 2


# A run that receives a stop signal


@contextlib.contextmanager
def insisting(world: World) -> Iterator[None]:
    """Repeat the stop signal during the save of the last checkpoint."""
    healthy = CheckpointDirectory.commit

    def publish(self: CheckpointDirectory, step: int) -> None:
        if world.poll_stop():
            os.kill(os.getpid(), signal.Signals[str(world.stop.requested)])
        healthy(self, step)

    with (
        patch.object(signals, "REPEAT_SECONDS", 0.0),
        patch.object(CheckpointDirectory, "commit", publish),
    ):
        yield


@pytest.mark.parametrize(
    ("fault", "planted", "saved"),
    [
        ("term:1:3", contextlib.nullcontext, [2, 3]),
        ("usr1:1:3", contextlib.nullcontext, [2, 3]),
        ("hup:0:3", contextlib.nullcontext, [2, 3]),
        ("term:0:3", insisting, [2, 3]),
        ("term-save:1:4", contextlib.nullcontext, [2, 4, 5]),  # after the step that follows
        ("int-rename:0:4", contextlib.nullcontext, [2, 4, 5]),
    ],
)
def test_a_stop_signal_saves_a_checkpoint_and_exits(
    job: Job, fault: str, planted: Any, saved: list[int]
) -> None:
    ended: list[Ended] = run(replace(job, fault=fault, planted=planted), 2)
    assert [one.error for one in ended] == ["", ""]
    assert good_checkpoints(job) == saved
    assert ended[0].out.count(f"saved run/checkpoints/step-{saved[-1]:08}") == 1
    status = RunFolder(job.folder / RUN).read_status()
    assert (status["state"], status["step"]) == ("interrupted", saved[-1])
    name = "SIG" + re.split("[-:]", fault)[0].upper()
    assert status["message"].startswith(f"stopped by {name} after step {saved[-1]} of ")
    assert status["message"] in ended[0].out
    assert (job.folder / RUN / "model.safetensors").is_file()


def test_a_repeated_interrupt_exits_after_the_save(job: Job) -> None:
    ended: list[Ended] = run(replace(job, fault="int:0:3", planted=insisting), 2)
    assert "RunError" in [one.error for one in ended]
    assert good_checkpoints(job) == [2, 3]
    assert ended[0].out.count("saved run/checkpoints/step-00000003") == 1
    assert ended[0].err == "rank 0: stopped by SIGINT\n"
    assert not (job.folder / RUN / "model.safetensors").exists()
