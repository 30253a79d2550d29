"""Failed saves, and asynchronous saves during training."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch

from engine.checkpoint import saver
from engine.checkpoint.async_save import THREAD_NAME, Background, HostStaging
from engine.checkpoint.dcp_shard import DCPShard
from engine.checkpoint.directory import CheckpointDirectory
from engine.errors import RunError
from engine.training.trainer import Trainer
from engine.world.world import World
from tests.support.jobs import checkpoints_of, into_run, run


@contextlib.contextmanager
def failing_once(world: World) -> Iterator[None]:
    """Make the commit of every checkpoint after the first step fail."""
    healthy = CheckpointDirectory.commit

    def publish(self: CheckpointDirectory, step: int) -> None:
        if step > 1:
            raise OSError(5, "Input/output error", str(self.temporary(step)))
        healthy(self, step)

    with patch.object(CheckpointDirectory, "commit", publish):
        yield


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failed_save_ends_the_run_and_preserves_the_previous_checkpoint(tmp_path, asynchronous):
    more = ("checkpoint.every=1", f"checkpoint.asynchronous={asynchronous}", "MAX_STEPS=9")
    ended = run(into_run(tmp_path, *more, planted=failing_once), 2)
    assert [one.error for one in ended] == ["RunError", "RunError"]
    said = "".join(one.err for one in ended)
    assert said.count("checkpoint of step 2: ") == 1
    assert "step-00000002 cannot be written: Input/output error" in said
    assert checkpoints_of(tmp_path).steps() == [1]
    assert checkpoints_of(tmp_path).leftovers() == []


@contextlib.contextmanager
def failing_in_background(world: World) -> Iterator[None]:
    """Like `failing_once`, but each step waits for the running save first."""
    healthy = Trainer.step

    def step(self: Trainer, step: int, **more: Any) -> Any:
        for thread in threading.enumerate():
            if thread.name == THREAD_NAME:
                thread.join()
        return healthy(self, step, **more)

    with failing_once(world), patch.object(Trainer, "step", step):
        yield


def test_a_failed_asynchronous_save_ends_the_run_before_the_next_save(tmp_path):
    more = ("checkpoint.every=3", "checkpoint.asynchronous=True", "MAX_STEPS=9")
    ended = run(into_run(tmp_path, *more, planted=failing_in_background), 2)
    assert [one.error for one in ended] == ["RunError", "RunError"]
    said = "".join(one.err for one in ended)
    assert said.count("checkpoint of step 3: ") == said.count("\n") == 1
    assert [max(one.batches) for one in ended] == [5, 5], "the next would be after step 6"
    assert checkpoints_of(tmp_path).leftovers() == []


@contextlib.contextmanager
def slow_to_commit(world: World) -> Iterator[None]:
    """Delay the commit until half a second after the run has started to exit, which is longer than
    a failed run waits for a save."""
    leaving, publish, leave = threading.Event(), CheckpointDirectory.commit, saver.Saver.__exit__

    def commit_late(self: CheckpointDirectory, step: int) -> None:
        leaving.wait()
        time.sleep(0.5)
        publish(self, step)

    def signal_exit(self: saver.Saver, *how: Any) -> None:
        leaving.set()
        leave(self, *how)

    with (
        patch.object(CheckpointDirectory, "commit", commit_late),
        patch.object(saver.Saver, "__exit__", signal_exit),
        patch.object(saver, "EXIT_WAIT_SECONDS", 0.1),
    ):
        yield


def test_a_diverged_run_waits_for_the_running_asynchronous_save(tmp_path):
    more = ("checkpoint.every=2", "checkpoint.asynchronous=True", "MAX_STEPS=9")
    ended = run(into_run(tmp_path, *more, fault="nan:1:3", planted=slow_to_commit), 2)
    assert [one.error for one in ended] == ["RunError", "RunError"]
    assert checkpoints_of(tmp_path).steps() == [2]
    assert checkpoints_of(tmp_path).leftovers() == []


# Staging and the thread


def test_staged_tensors_do_not_change_with_the_originals():
    copies, tensor = HostStaging(), torch.arange(6.0).view(2, 3)
    for _ in range(2):  # the second time into the same buffers
        boxed: Any = copies.stage(
            {"a": DCPShard.unsharded(tensor), "b": DCPShard.unsharded(tensor[0, 0])}
        )
        held = boxed["a"].fetch(), boxed["b"].fetch()
        expected = tensor.clone()
        tensor += 1
        assert torch.equal(held[0], expected)
        assert torch.equal(held[1], expected[0, 0])


def test_background_runs_one_task_at_a_time_and_raises_its_error_once():
    background, go, done = Background(), threading.Event(), list[int]()

    def first() -> None:
        go.wait()
        done.append(1)
        raise RunError("first")

    background.start(first)
    background.wait(0.01)
    assert done == []
    go.set()
    with pytest.raises(RunError, match="first"):
        background.start(lambda: done.append(2))
    background.wait()
    background.start(lambda: done.append(3))
    background.wait()
    assert done == [1, 3]
