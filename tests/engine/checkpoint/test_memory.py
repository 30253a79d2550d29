"""Memory of saving and loading: one shard at a time, never the whole model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from engine.checkpoint import state_dict
from engine.checkpoint.dcp_shard import DCPShard
from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.save import save
from tests.support.allocations import allocated
from tests.support.checkpoints import Trainee, layout_of, training_at
from tests.support.training import TrainingCase
from tests.support.worlds import run_world

RUN = TrainingCase(layers=6)


def peak(task: Callable[[], object]) -> tuple[int, int]:
    """Return the peak of the bytes that a task allocates, and those that remain allocated."""
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True) as profiler, record_function("task"):
        task()
    return allocated(profiler, "task")


class Fetched:
    """Counts the shards that are alive after they were fetched; ``most`` is the maximum."""

    def __init__(self) -> None:
        self.alive = self.most = 0

    def of(self, boxed: Any) -> DCPShard:
        def fetch() -> torch.Tensor:
            piece: torch.Tensor = boxed.fetch().clone()
            weakref.finalize(piece.untyped_storage(), self._gone)
            self.alive += 1
            self.most = max(self.most, self.alive)
            return piece

        return DCPShard(fetch, boxed.shard, boxed.dtype)

    def _gone(self) -> None:
        self.alive -= 1


def measure(rank: int, size: int, path: Path) -> dict[str, int]:
    trainee = Trainee.make(RUN, rank)
    trainee.train([1])
    model, optimizer = trainee.model, trainee.stepper.optimizer
    state = {**state_dict.model_tensors(model), **state_dict.optimizer_tensors(model, optimizer)}
    fetched, directory = Fetched(), CheckpointDirectory(path)
    state = {name: fetched.of(tensor) for name, tensor in state.items()}
    save(directory, state, training_at(1), layout=layout_of(RUN), group=None)
    stored, other = SavedCheckpoint(directory.folder(1)), Trainee.make(RUN, rank, seed=2)
    loading, _ = peak(lambda: stored.load_model(other.model))
    going_on, left = peak(lambda: stored.load_optimizer(other.model, other.stepper.optimizer))
    reading, _ = peak(
        lambda: [name for name in stored.parameter_types() if stored.parameter(name).numel()]
    )
    sizes = [parameter.nbytes for parameter in model.parameters()]
    return {
        "pieces": fetched.most,
        "loading the model": loading,
        "loading the optimizer, beside its states": going_on - left,
        "reading without a model": reading,
        "largest": max(sizes),
        "model": sum(sizes),
    }


def test_saving_and_loading_hold_one_shard_in_memory_at_a_time(tmp_path):
    (found,) = run_world(1, measure, tmp_path)
    assert found.pop("pieces") <= 2  # the next is there before the last goes
    largest, model = found.pop("largest"), found.pop("model")
    assert model > 8 * largest
    assert {what: taken for what, taken in found.items() if taken > 2.5 * largest} == {}
