"""Training state, measured on the live tensors: it equals the estimate, and is sharded as ZeRO's
stages document."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from torch import Tensor

from engine.estimate.estimate import estimate
from engine.optim.optimizer import ResidentOptimizer
from engine.plan import make_plan
from engine.training.pipeline import Pipeline
from engine.training.trainer import Trainer
from models.parallel.collectives import Axis, Handle
from tests.support.mode_sizes import full_mode_sizes
from tests.support.runs import open_run
from tests.support.worlds import run_world

WITHIN = 0.02
CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 16
MAX_STEPS = 2
model = dict(n_layer=4, n_head=8, n_embd=64, vocab_size=512)
data = dict(type="synthetic")
optimizer = dict(type="adamw")
"""
WEIGHTS = 4 * (12 * 64 * 64) + 512 * 64
"""Entries that ZeRO shards: matrices of the blocks, and the token table."""
VECTORS = 4 * (13 * 64) + 2 * 64 + 16 * 64
"""Biases, norms and positions."""


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Bytes of one rank; ``alive``: of all tensors that its run has created."""

    parameters: int
    gradients: int
    optimizer: int
    alive: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Measurements of one rank: between two steps, and after the last backward pass."""

    stage: int
    between: Bytes
    within: Bytes


def storages(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages of tensors, each counted once."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def count(run: Trainer) -> Bytes:
    parameters = list(run.model.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    gradients += [deferred.total for deferred in run.model.parallel.zero._accumulated.values()]
    optimizer = run.stepper.optimizer
    assert isinstance(optimizer, ResidentOptimizer)
    states = [s for held in optimizer.inner.state.values() for s in held.values() if s.dim()]
    gc.collect()
    alive = [thing for thing in gc.get_objects() if isinstance(thing, Tensor)]
    return Bytes(
        parameters=storages(parameters),
        gradients=storages(gradients),
        optimizer=storages(states),
        alive=storages(alive),
    )


def observe(rank: int, size: int, config: Path, overrides: list[list[str]]) -> list[Measurement]:
    return [_observe(rank, size, config, case) for case in overrides]


def _observe(rank: int, size: int, config: Path, overrides: list[str]) -> Measurement:
    gc.collect()
    gc.freeze()  # what is there already is passed over
    run = open_run(rank, size, config, overrides)
    within: list[Bytes] = []
    healthy = Pipeline.train

    def train(self: Pipeline, *how: Any) -> Tensor:
        loss = healthy(self, *how)
        within.append(count(run))
        return loss

    run.step(1)
    # Sums begin when they are waited for: terms that are under way are no state.
    begin = Axis.start_all_reduce

    def start_late(self: Axis, x: Tensor) -> Handle:
        return Handle(axis=self, then=lambda: begin(self, x).wait())

    later = patch.object(Axis, "start_all_reduce", start_late)
    with patch.object(Pipeline, "train", train), later:
        run.step(2)
    stage = run.world.axes["pipeline"].index
    return Measurement(stage=stage, between=count(run), within=within[-1])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return path


DEEP = ("TENSOR_PARALLEL=2", "MODE=2.5d", "DEPTH=2", "zero.depth=True")
"""Weights are sharded over two layers of depth, and over data."""


SEQUENCE = ("TENSOR_PARALLEL=4", "MODE=sequence", "zero.depth=True")
"""Weights are sharded over the ranks that share the tokens."""


def by_world() -> Iterator[tuple[int, list[str]]]:
    """Yield the number of ranks and overrides of each case."""
    for data in (1, 2, 4):
        for stage in range(4):
            yield data, [f"zero.stage={stage}"]
    yield 2, ["zero.stage=2", "precision=bf16"]
    yield 2, ["zero.stage=3", "optimizer.type=sgd", "optimizer.momentum=0.9"]
    yield 2, ["optimizer.type=sgd"]
    for cut in full_mode_sizes():
        mode = [f"TENSOR_PARALLEL={cut.tensor}", f"MODE={cut.mode}", f"DEPTH={cut.depth}"]
        yield cut.tensor, [*mode, "BATCH_SIZE=8"]
        if cut.tensor <= 4:
            yield 2 * cut.tensor, [*mode, "zero.stage=1", "BATCH_SIZE=8"]
            yield 2 * cut.tensor, [*mode, "zero.stage=3", "BATCH_SIZE=8"]
    for stage in (1, 2, 3):
        yield 2, [f"zero.stage={stage}", *DEEP]
        yield 4, [f"zero.stage={stage}", *DEEP]
        yield 4, [f"zero.stage={stage}", *SEQUENCE]
    yield 8, ["zero.stage=3", *DEEP, "TENSOR_PARALLEL=8", "BATCH_SIZE=8"]
    stages = ["PIPELINE=2", "NUM_MICRO_BATCHES=2"]
    yield 2, stages
    yield 4, ["zero.stage=2", *DEEP, *stages]
    yield 2, [*stages, "model.tie_embeddings=False", "stages=balanced"]
    yield 2, [*stages, "model.num_chunks=2"]
    yield 4, [*stages, "zero.stage=2", "schedule=zero_bubble"]


CASES = [(ranks, tuple(overrides)) for ranks, overrides in by_world()]


@cache
def measurements(config: Path, ranks: int) -> dict[tuple[str, ...], list[Measurement]]:
    """Return the measurements of all ranks by overrides; one world measures all of its size."""
    every = [list(overrides) for size, overrides in CASES if size == ranks]
    by_rank = run_world(ranks, observe, config, every)
    return {
        tuple(overrides): [of_rank[number] for of_rank in by_rank]
        for number, overrides in enumerate(every)
    }


@pytest.mark.parametrize(
    ("ranks", "overrides"), CASES, ids=[f"{n}-{' '.join(o)}" for n, o in CASES]
)
def test_state_bytes_equal_the_estimate(
    config: Path, ranks: int, overrides: tuple[str, ...]
) -> None:
    plan = make_plan(config, gpus=ranks, overrides=overrides, environ={})
    stages = estimate(plan, device="cpu").stages
    for found in measurements(config, ranks)[overrides]:
        expected = stages[found.stage].after_step
        for name in ("parameters", "gradients", "optimizer"):
            held, estimated = getattr(found.between, name), getattr(expected, name)
            assert held == pytest.approx(estimated, rel=WITHIN), name


@pytest.mark.parametrize(
    ("ranks", "overrides"), CASES, ids=[f"{n}-{' '.join(o)}" for n, o in CASES]
)
def test_only_the_state_is_alive_between_steps(
    config: Path, ranks: int, overrides: tuple[str, ...]
) -> None:
    for found in measurements(config, ranks)[overrides]:
        state = found.between.parameters + found.between.gradients + found.between.optimizer
        assert found.between.alive == pytest.approx(state, rel=WITHIN)


SHARED_OUT = {  # stage -> entries of weights that a rank of n has as parameters, gradients, states
    0: lambda n: (WEIGHTS, WEIGHTS, WEIGHTS),
    1: lambda n: (WEIGHTS / n, WEIGHTS, WEIGHTS / n),
    2: lambda n: (WEIGHTS / n, WEIGHTS / n, WEIGHTS / n),
    3: lambda n: (WEIGHTS / n, WEIGHTS / n, WEIGHTS / n),
}


@pytest.mark.parametrize(
    ("stage", "ranks", "over"),
    [
        *((stage, ranks, ()) for stage in SHARED_OUT for ranks in (2, 4)),
        *((stage, ranks, DEEP) for stage in (1, 2, 3) for ranks in (2, 4)),
        *((stage, 4, SEQUENCE) for stage in (1, 2, 3)),
    ],
)
def test_a_zero_stage_shards_the_state_that_it_documents(
    config: Path, stage: int, ranks: int, over: tuple[str, ...]
) -> None:
    """After the backward pass: optimizer states are sharded from stage 1 on, gradients from stage
    2 on, and stages 1 and 2 also store gathered weights."""
    parameters, gradients, states = (n + VECTORS for n in SHARED_OUT[stage](ranks))
    gathered = WEIGHTS if stage in (1, 2) else 0
    for found in measurements(config, ranks)[f"zero.stage={stage}", *over]:
        assert found.within.parameters == pytest.approx(4 * parameters, rel=WITHIN)
        assert found.within.gradients == pytest.approx(4 * gradients, rel=WITHIN)
        assert found.within.optimizer == pytest.approx(8 * states, rel=WITHIN)
        total = 4 * (parameters + gradients + 2 * states + gathered)
        assert found.within.alive == pytest.approx(total, rel=WITHIN)
