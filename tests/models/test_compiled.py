"""Compiled blocks train the same model as one process that does not compile, in every mode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from engine.pipeline.schedule import SCHEDULES
from models.parallel.collectives import Axis, Traffic
from models.parallel.compilation import axes_of_compiled_code
from models.parallel.norm import ShardedLayerNorm
from tests.support.mode_sizes import full_mode_sizes
from tests.support.parity import Parity
from tests.support.training import TrainingCase, train
from tests.support.worlds import run_world


def run(**more: Any) -> TrainingCase:
    """Return a case in float64 whose code is traced, but not generated, unless ``more`` differs."""
    return TrainingCase(**{"dtype": torch.float64, "compiled": "aot_eager", **more})


def in_every_mode() -> Iterator[TrainingCase]:
    """Yield every mode alone, and with settings that change what its blocks save and send."""
    for cut in full_mode_sizes():
        grid: dict[str, Any] = cut._asdict()
        yield run(**grid)
        yield run(**grid, zero=1, compute=torch.bfloat16, dtype=torch.float32)
        yield run(**grid, samples=3, ignored=5, checkpoint=True)  # samples that ranks share
        yield run(**grid, checkpoint="selective", keep_gathers=True)


def with_every_option() -> Iterator[TrainingCase]:
    """Yield every stage of ZeRO, every schedule, and generated code."""
    for zero in (1, 2, 3):
        yield run(zero=zero, data=2, accumulation=2)
        yield run(zero=zero, data=2, offload=True)
    yield run(zero=3, data=2, disk="weights")
    yield run(checkpoint="selective")
    yield run(mode="1d", tensor=2, dtype=torch.float32, compute=torch.float16)
    for schedule in SCHEDULES:
        chunks = 2 if schedule == "interleaved" else 1
        pipelined = run(schedule=schedule, pipeline=2, micro_batches=2, chunks=chunks)
        yield replace(pipelined, layers=2 * chunks)
    yield run(mode="1d", tensor=2, compiled="inductor", dtype=torch.float32)
    yield run(mode="2d", tensor=4, compiled="inductor", dtype=torch.float32)
    yield run(compiled="inductor", dtype=torch.float32, checkpoint=True)


CASES = list(dict.fromkeys([*in_every_mode(), *with_every_option()]))
PARITY = Parity(CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.compiled}")
def test_compiled_blocks_train_the_same_model_as_one_process(case: TrainingCase) -> None:
    PARITY.check(case)


def graphs_from_disk(rank: int, size: int, folder: Path, case: TrainingCase) -> tuple[int, int]:
    """Train a case with ``folder`` for compiled code; return the graphs found there and the graphs
    compiled."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    train(rank, size, case)
    found = counters["inductor"]
    return found["fxgraph_cache_hit"], found["fxgraph_cache_miss"]


@pytest.mark.slow
def test_a_later_run_takes_its_code_from_the_disk(tmp_path: Path) -> None:
    case = run(mode="2d", tensor=4, compiled="inductor", dtype=torch.float32)
    first = run_world(4, graphs_from_disk, tmp_path, case)
    second = run_world(4, graphs_from_disk, tmp_path, case)
    assert [sum(graphs) for graphs in first] == [sum(graphs) for graphs in second]
    assert any(compiled for _, compiled in first)
    assert all(found > 0 and compiled == 0 for found, compiled in second)


def norm_and_gradients(norm: Any, axis: Axis) -> tuple[list[Tensor], dict[tuple[str, str], int]]:
    """Return the norm of features that two ranks share, the gradients, and the bytes sent."""
    axis.traffic.reset()
    draw = torch.Generator().manual_seed(axis.index)
    x, w, b = (torch.randn(n, 6, generator=draw).double() for n in (4, 1, 1))
    given = [x.requires_grad_(), w[0].requires_grad_(), b[0].requires_grad_()]
    y = norm(*given, axis, 1e-5)
    gradients = torch.autograd.grad(y.square().sum(), given)
    return [y.detach(), *gradients], dict(axis.traffic.bytes)


def compare_norms(rank: int, size: int) -> None:
    """Check on each rank that a traced norm has the results and the traffic of an eager one."""
    group = torch.distributed.group.WORLD
    axis = Axis(name="c", size=size, index=rank, group=group, traffic=Traffic())
    eager, eager_bytes = norm_and_gradients(ShardedLayerNorm.apply, axis)
    traced = torch.compile(
        lambda *given: ShardedLayerNorm.apply(*given), backend="aot_eager", fullgraph=True
    )
    with axes_of_compiled_code({"c": axis}):
        found, found_bytes = norm_and_gradients(traced, axis)
    torch.testing.assert_close(found, eager, rtol=1e-12, atol=1e-12)
    assert found_bytes == eager_bytes
    assert {collective for _, collective in found_bytes} == {"all_gather", "all_reduce"}


def test_a_collective_in_traced_code_sends_what_it_sends_in_eager_code() -> None:
    run_world(2, compare_norms)
