"""The seconds of a run by kind of work, in a time that passes only where the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest

from engine.checkpoint.saver import Saver
from engine.data.batches.loader import EvalBatches, TrainBatches
from engine.optim.optimizer import ResidentOptimizer
from engine.runs.reporter import Reporter
from engine.train import train_steps
from engine.training import step_times
from engine.training.pipeline import _PipelineRun
from engine.training.step import Stepper
from engine.training.step_times import StepTimes
from models.gpt import GPT
from models.parallel.clock import Activity, HostMarks, PartClock
from models.parallel.collectives import Axis
from tests.support.jobs import TINY
from tests.support.runs import open_run
from tests.support.worlds import run_world

DATA, FORWARD, BACKWARD, WAIT, UPDATE = 1.0, 10.0, 20.0, 100.0, 10_000.0
LAYOUTS = {
    "1d": ("TENSOR_PARALLEL=2", "MODE=1d"),
    "data": ("gradient_accumulation=2",),
    "pipeline": ("PIPELINE=2", "NUM_MICRO_BATCHES=2"),
}


class Time:
    """A time that calls of chosen functions advance."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, dict[str, int]()

    def read(self) -> float:
        return self.now

    def passes_in(self, owner: type, name: str, seconds: float) -> AbstractContextManager[Any]:
        healthy = getattr(owner, name)

        def slow(*arguments: Any, **more: Any) -> Any:
            self.now += seconds
            self.calls[name] = self.calls.get(name, 0) + 1
            return healthy(*arguments, **more)

        return patch.object(owner, name, slow)


@contextmanager
def slow_parts(time: Time) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, seconds in (
            (TrainBatches, "batch", DATA),
            (EvalBatches, "batch", DATA),
            (GPT, "forward", FORWARD),
            (_PipelineRun, "backward", BACKWARD),
            (Axis, "_wait", WAIT),
            (ResidentOptimizer, "step", UPDATE),
        ):
            stack.enter_context(time.passes_in(owner, name, seconds))
        yield


def measure(
    rank: int, size: int, config: Path, layout: str, fault: str | None
) -> list[dict[str, tuple[float, float]]]:
    """Return the parts of a step, and of a step with a validation: (measured, expected)."""
    more = (*LAYOUTS[layout], "data.validation=0.2", "eval.every=2", "eval.batches=2")
    run, time, found = open_run(rank, size, config, more), Time(), []
    run.world.traffic.clock = PartClock(partial(HostMarks, time.read))
    with FAULTS[fault]() if fault else nullcontext(), slow_parts(time):
        for step in (1, 2):
            time.calls.clear()
            run.step(step)
            calls = dict(time.calls)
            expected = {
                "data": DATA * calls["batch"],
                "forward_backward": FORWARD * calls["forward"] + BACKWARD * calls["backward"],
                "communication": WAIT * calls.get("_wait", 0),
                "optimizer": UPDATE,
                "validation": 0.0,
            }
            if step == 2:
                before, _ = time.now, run.validate()
                expected["validation"] = time.now - before
                assert expected["validation"] > FORWARD
            time.now += 0.5  # a log and a checkpoint
            times = run.step_times().seconds()
            found.append({part: (times[part], wanted) for part, wanted in expected.items()})
    return found


def wrong(all_times: list[list[dict[str, tuple[float, float]]]]) -> set[str]:
    """Return the parts that differ on any rank, in any step."""
    return {
        part
        for ranks in all_times
        for step in ranks
        for part, (found, expected) in step.items()
        if found != expected
    }


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path / "tiny.py"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_time_of_a_step_is_divided_by_its_work(config, layout):
    all_times = run_world(2, measure, config, layout, None)
    assert wrong(all_times) == set()
    assert all(step["communication"][0] > 0 for ranks in all_times for step in ranks)


FAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {}


def fault(plant: Callable[[], AbstractContextManager[Any]]) -> None:
    FAULTS[plant.__name__] = plant


@fault
def waits_are_counted_as_computation() -> AbstractContextManager[Any]:
    return patch.object(PartClock, "waiting", lambda self: nullcontext())


@fault
def communication_of_validations_is_counted_in_the_step() -> AbstractContextManager[Any]:
    healthy = StepTimes.of

    def of(seconds: Mapping[Activity, float]) -> StepTimes:
        return healthy(
            {
                Activity("data" if waiting else part, waiting): spent
                for (part, waiting), spent in seconds.items()
            }
        )

    return patch.object(StepTimes, "of", of)


@fault
def the_update_is_counted_as_backward() -> AbstractContextManager[Any]:
    healthy = Stepper.run

    def run(self: Stepper, *arguments: Any, **more: Any) -> Any:
        with patch.object(PartClock, "start", lambda self, part: None):
            self.world.traffic.clock._change(Activity(step_times.FORWARD_BACKWARD))
            return healthy(self, *arguments, **more)

    return patch.object(Stepper, "run", run)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_in_the_step_times_is_detected(config, fault):
    assert wrong(run_world(2, measure, config, "1d", fault)) != set()


def test_clocks_start_after_rank_0_has_opened_the_logs(config):
    """A rank that waits for W&B's start on rank 0 would count that as communication."""
    trainer, calls = open_run(0, 1, config, ()), list[str]()
    trainer.done = trainer.steps
    with (
        patch.object(
            type(trainer.world), "barrier", lambda _: calls.append("barrier"), create=True
        ),
        patch.object(trainer.clock, "restart", lambda: calls.append("restart")),
    ):
        train_steps(trainer, Reporter(), cast(Saver, None))
    assert calls == ["barrier", "restart"]


def test_the_sums_over_ranks_and_steps_are_exact():
    parts = {Activity("data"): 1.0, Activity("optimizer"): 2.0, Activity("optimizer", True): 4.0}
    one = StepTimes.of(parts)
    assert one.seconds() == {
        "data": 1.0,
        "forward_backward": 0.0,
        "communication": 4.0,
        "optimizer": 2.0,
        "validation": 0.0,
        "other": 0.0,
    }
    assert (one + one).total == 14.0
