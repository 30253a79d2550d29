"""A Trainer on one rank of a test world, without a launcher and without a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from engine.data.batches.loader import load_batches
from engine.layout import Layout
from engine.plan import Plan, make_plan
from engine.training.build import build_model, parallel_context
from engine.training.trainer import Trainer
from engine.world.world import World
from models.chunks import ModelChunks
from models.parallel.collectives import Axis, Traffic
from tests.support.training import axes_by_name, open_axes

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StandInWorld:
    """The members of World that a Trainer uses."""

    plan: Plan
    axes: dict[str, Axis]
    traffic: Traffic
    is_main: bool
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    size: int = 1
    local_size: int = 1

    def run_on_all(self, task: Callable[[], T]) -> T:
        return task()

    def poll_stop(self) -> bool:
        return False


def open_run(rank: int, size: int, config: Path, overrides: Sequence[str], **more: Any) -> Trainer:
    """Return the Trainer of ``config`` on ``rank`` of ``size``, over synthetic or cached data."""
    plan = make_plan(config, gpus=size, overrides=overrides, environ={})
    traffic = Traffic()
    axes = open_axes(plan.layout, rank, traffic)
    world = StandInWorld(plan=plan, axes=axes, traffic=traffic, is_main=rank == 0)
    return run_of(world, cache=config.parent / "cache", **more)


def run_of(world: StandInWorld, *, cache: Path, steps: int = 10) -> Trainer:
    plan = world.plan
    batches = load_batches(plan.settings, data_size=plan.layout.data, cache=cache)
    return Trainer(cast(World, world), batches, steps=steps, matmul="torch")


# Without other ranks, and without memory


@contextmanager
def pretended(rank: int, size: int) -> Iterator[None]:
    """Open a process group of ``size`` ranks that sends nothing: its collectives return at once,
    with undefined contents."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        # torch's own copies what is sent to what is received, which may have other shapes.
        with patch.object(dist, "all_to_all", lambda *tensors, **how: AtOnce()):
            yield
    finally:
        dist.destroy_process_group()


class AtOnce:
    """A collective that is complete."""

    def wait(self) -> None:
        """Return at once."""


def lonely_axes(layout: Layout, rank: int) -> dict[str, Axis]:
    """Return a rank's axes, with groups if a process group is open."""
    axes, traffic = {}, Traffic()
    for name, along in axes_by_name(layout).items():
        ranks = next(ranks for ranks in layout.groups(*along) if rank in ranks)
        group = dist.new_group(ranks) if dist.is_initialized() and len(ranks) > 1 else None
        index = ranks.index(rank)
        axes[name] = Axis(name=name, size=len(ranks), index=index, group=group, traffic=traffic)
    return axes


def build_empty(plan: Plan, rank: int) -> ModelChunks:
    """Build a rank's share of the model: shapes without values."""
    axes = lonely_axes(plan.layout, rank)
    part = parallel_context(plan.settings, plan.layout.mode, axes, torch.device("meta"))
    with patch.object(ModelChunks, "initialise", lambda self, seed: None):
        return build_model(plan.settings, part)
