"""The estimate for CPUs, where gloo's pairwise collectives buffer all terms, compared with real
processes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from engine.estimate.estimate import estimate
from engine.plan import make_plan
from tests.support.allocations import MeasuredMemory, estimated_sends, measure_all
from tests.support.worlds import run_world

WITHIN = 0.03
CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 64
MAX_STEPS = 2
model = dict(n_layer=2, n_head=4, n_embd=128, vocab_size=1001)
data = dict(type="synthetic")
loss_chunk = 100
"""
CASES = {
    2: [
        ["precision=bf16"],
        ["model.checkpoint=True", "NUM_MICRO_BATCHES=2"],
        ["zero.stage=1"],
        ["zero.stage=3", "precision=bf16", "model.tie_embeddings=False"],
        ["TENSOR_PARALLEL=2", "MODE=1d"],
        ["TENSOR_PARALLEL=2", "MODE=1d", "precision=bf16", "model.checkpoint=True"],
        ["PIPELINE=2", "NUM_MICRO_BATCHES=4"],
    ],
    4: [
        ["TENSOR_PARALLEL=4", "MODE=2d"],
        [
            *("TENSOR_PARALLEL=4", "MODE=sequence", "zero.stage=2", "zero.depth=True"),
            *("BATCH_SIZE=1", "SEQ_LEN=1024", "model.head_dim=64", "model.n_inner=16"),
        ],
        ["TENSOR_PARALLEL=2", "MODE=1d", "zero.stage=2", "precision=bf16"],
        ["TENSOR_PARALLEL=2", "MODE=1d", "PIPELINE=2", "NUM_MICRO_BATCHES=2"],
    ],
}
EACH = pytest.mark.parametrize(
    ("ranks", "overrides"),
    [(ranks, tuple(some)) for ranks, cases in CASES.items() for some in cases],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "gloo.py"
    path.write_text(CONFIG)
    return path


@cache
def measured(config: Path, ranks: int) -> dict[tuple[str, ...], list[MeasuredMemory]]:
    """Return the measurements of all ranks, by overrides."""
    by_rank = run_world(ranks, measure_all, config, CASES[ranks])
    return {
        tuple(some): [of_rank[number] for of_rank in by_rank]
        for number, some in enumerate(CASES[ranks])
    }


@EACH
def test_peak_memory_with_gloo_equals_the_estimate(
    config: Path, ranks: int, overrides: tuple[str, ...]
) -> None:
    plan = make_plan(config, gpus=ranks, overrides=overrides, environ={})
    stages = estimate(plan, device="cpu").stages
    for stage in stages:
        most = max(
            one.most for one in measured(config, ranks)[overrides] if one.stage == stage.stage
        )
        assert stage.memory.total == pytest.approx(most, rel=WITHIN)


@EACH
def test_bytes_sent_with_gloo_equal_the_estimate(
    config: Path, ranks: int, overrides: tuple[str, ...]
) -> None:
    plan = make_plan(config, gpus=ranks, overrides=overrides, environ={})
    sent = [one.sent for one in measured(config, ranks)[overrides]]
    assert estimated_sends(estimate(plan, device="cpu")) == max(
        sent, key=lambda one: sum(size for _, size in one.values())
    )
