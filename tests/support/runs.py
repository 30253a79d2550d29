"""A config's run on one rank of a test's world: what ``engine.run`` makes of it, without a launcher
and without a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from engine.context import World
from engine.data.loader import load
from engine.plan import Plan, make_plan
from engine.run import Run
from models.parallel.collectives import Axis, Traffic
from tests.support.training import open_axes

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """What a run needs of its world."""

    axes: dict[str, Axis]
    traffic: Traffic
    is_main: bool
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stop_requested: bool = False

    def agree(self, task: Callable[[], T]) -> T:
        return task()


def open_run(rank: int, size: int, config: Path, overrides: Sequence[str], **more: Any) -> Run:
    """The run of ``config`` on ``rank`` of ``size``, over synthetic or cached data."""
    plan = make_plan(config, gpus=size, overrides=overrides, environ={})
    traffic = Traffic()
    axes = open_axes(plan.layout, rank, traffic)
    world = StandIn(axes=axes, traffic=traffic, is_main=rank == 0)
    return run_of(plan, world, cache=config.parent / "cache", **more)


def run_of(plan: Plan, world: StandIn, *, cache: Path, steps: int = 10) -> Run:
    batches = load(plan.settings, data_size=plan.layout.data, cache=cache)
    return Run(plan, cast(World, world), batches, steps=steps, matmul="torch")
