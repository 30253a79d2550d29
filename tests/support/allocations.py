"""Memory that a training step allocates on a CPU, and bytes that it sends: one rank of any world,
in this process, without the other ranks."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

import engine.training.trainer
from engine.data.batches.loader import Batch
from engine.estimate.result import Estimate
from engine.plan import Plan
from engine.step_message import message_entries
from engine.training.matmuls import MATMULS
from engine.training.step import Stepper, StepResult
from engine.training.trainer import Trainer, micro_batches
from models.parallel.context import torch_matmul
from tests.support.runs import open_run, pretended
from tests.support.training import process_group

Sends = dict[tuple[str, str], tuple[int, int]]
"""Calls and bytes by axis and collective."""


@dataclass(frozen=True, kw_only=True)
class MeasuredMemory:
    """Measured values of one rank: entries of its parameters, peak and remaining bytes of its
    second step, and the bytes that it sent in it."""

    stage: int
    parameters: int
    most: int
    left: int
    sent: Sends


@contextmanager
def world_of_one(rank: int, size: int) -> Iterator[None]:
    """Open a process group as rank ``rank`` of ``size`` that sends nothing."""
    with pretended(rank, size):
        yield
    process_group.cache_clear()


def measure(rank: int, size: int, config: Path, overrides: Sequence[str]) -> MeasuredMemory:
    """Measure a case in an open world. Steps end before the ranks would all-reduce their loss."""
    gc.collect()  # what is freed in the meantime would count
    with (
        patch.object(Stepper, "all_reduce_result", _agree),
        # Ids are copied, as they are to a GPU: what numpy has read is not torch's.
        patch.object(engine.training.trainer, "micro_batches", _copied),
        patch.dict(MATMULS, torch=product),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        run = open_run(rank, size, config, overrides)
        run.step(1)
        run.world.traffic.reset()
        with record_function("second step"):
            run.step(2)
        sent = _sent(run)
    most, left = allocated(profiler, "second step")
    return MeasuredMemory(
        stage=run.world.axes["pipeline"].index,
        parameters=sum(p.numel() for p in run.model.parameters()),
        most=most,
        left=left,
        sent=sent,
    )


def _copied(plan: Plan, batch: Batch, device: torch.device) -> Iterator[Batch]:
    for ids, targets in micro_batches(plan, batch, device):
        yield ids.clone(), targets.clone()


def measure_all(
    rank: int, size: int, config: Path, cases: Sequence[Sequence[str]]
) -> list[MeasuredMemory]:
    """Measure several cases in one world."""
    return [measure(rank, size, config, overrides) for overrides in cases]


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply without temporary memory: the memory of oneDNN in 16 bits depends on the
    processor."""
    if a.dtype == torch.bfloat16:
        return a.new_zeros(a.shape[0], b.shape[1])
    return torch_matmul(a, b, bias)


def _agree(self: Stepper, step: int, loss: Tensor, *rest: Any) -> StepResult:
    """Send the control message and ignore its contents."""
    world = self.world
    world.all_reduce(torch.zeros(message_entries(world.size), dtype=torch.float64))
    return StepResult(loss=0.0, grad_norm=0.0, memory_bytes=(), stop=False)


def _sent(run: Trainer) -> Sends:
    traffic = run.world.traffic
    return {key: (traffic.calls[key], sent) for key, sent in traffic.bytes.items() if sent}


def estimated_sends(result: Estimate) -> Sends:
    """Return the estimated calls and bytes by axis and collective."""
    return {(one.axis, one.collective): (one.calls, one.bytes) for one in result.traffic}


def allocated(profiler: profile, what: str) -> tuple[int, int]:
    """Return bytes relative to the start of the profiler: the peak while the section of this name
    runs, and the value at its end."""
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    events = [(event.name(), event) for event in results.events()]
    start = next(event.start_ns() for name, event in events if name == what)
    changes = [
        (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]  # its stub knows no memory
        for name, event in events
        if name == "[memory]"
    ]
    live = most = 0
    for moment, change in sorted(changes, key=itemgetter(0)):
        live += change
        if moment > start:
            most = max(most, live)
    return most, live
