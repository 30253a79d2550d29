"""The estimate compared with the allocations and traffic of one real rank: every allocation of a
step, those within kernels included, in every mode and with every setting that changes them.

Collectives are replaced as in NCCL: they need no memory beyond their output.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from engine.estimate.estimate import estimate
from engine.estimate.local_shapes import LocalShapes
from engine.plan import Plan, make_plan
from models.parallel.registry import modes
from models.parallel.tuning import ROW_MULTIPLE
from tests.support.allocations import MeasuredMemory, estimated_sends, measure, world_of_one
from tests.support.mode_sizes import full_mode_sizes
from tests.support.runs import open_run

WITHIN = 0.01
CONFIG = """
BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 2
model = dict(n_layer=2, n_head=4, n_embd=64, vocab_size=201)
data = dict(type="synthetic")
loss_chunk = 64
"""
# Attention takes the most in one, norms and gathers in another, the MLP in the rest.
SETTINGS = [
    ["precision=bf16", "NUM_MICRO_BATCHES=2", "model.scale_embedding=True"],
    [
        "model.checkpoint=True",
        "model.tie_embeddings=False",
        "model.n_inner=16",
        "model.head_dim=64",
    ],
    ["model.checkpoint=True", "model.n_inner=16", "model.head_dim=4"],
    ["model.checkpoint='selective'", "keep_gathers=True"],
    ["keep_gathers=True", "SEQ_LEN=16", "model.vocab_size=8000", "gradient_accumulation=2"],
]
# Samples that several ranks hold; attention takes the most in all.
NARROW = ["model.n_inner=16", "model.vocab_size=101", "model.n_embd=32", "model.head_dim=256"]
SHARDED = [
    NARROW,
    [*NARROW, "precision=bf16", "SEQ_LEN=127"],
    [*NARROW, "model.checkpoint='selective'", "keep_gathers=True"],
    [*NARROW, "model.checkpoint=True", "context=ring"],
]
PIPELINE = ["PIPELINE=2", "NUM_MICRO_BATCHES=4"]
SCHEDULES = [
    ["schedule=gpipe", "model.checkpoint=True"],
    ["schedule=1f1b", "precision=bf16", "NUM_MICRO_BATCHES=8"],
    ["model.num_chunks=2", "model.n_layer=4"],
    ["schedule=zero_bubble"],
    ["schedule=zero_bubble", "keep_gathers=True", "model.checkpoint=True"],
    ["stages=balanced", "model.vocab_size=4000", "model.tie_embeddings=False"],
]


def cases() -> Iterator[tuple[int, list[str]]]:
    """Yield ranks and overrides."""
    alone = ["model.activation=gelu", "precision=float64", "optimizer.type=sgd"]
    yield 1, alone
    drops = ["model.resid_pdrop=0.1", "model.embd_pdrop=0.1"]
    yield 1, [*drops, "model.attn_pdrop=0.1"]
    yield 2, [*drops, "precision=bf16", "model.checkpoint=True"]
    yield 1, ["model.n_inner=300", "model.head_dim=24", "loss_chunk=None"]
    for settings in SETTINGS:
        yield 2, settings
    for cut in full_mode_sizes():
        mode = [f"TENSOR_PARALLEL={cut.tensor}", f"MODE={cut.mode}", f"DEPTH={cut.depth}"]
        for settings in SETTINGS:
            yield cut.tensor, [*mode, *settings]
        yield cut.tensor, [*mode, "model.n_inner=251"]
        if modes()[cut.mode].inner.tokens:
            few = range(4) if cut.tensor < 8 else (1, 3)
            for samples, settings in [((1, 3, 1, 3)[n], SHARDED[n]) for n in few]:
                yield cut.tensor, [*mode, f"BATCH_SIZE={samples}", *settings]
        yield 2 * cut.tensor, [*mode, "zero.stage=3", "model.vocab_size=4000"]
        yield 2 * cut.tensor, [*mode, *PIPELINE, "BATCH_SIZE=16", "schedule=zero_bubble"]
    sharded = ["TENSOR_PARALLEL=4", "MODE=2d", "BATCH_SIZE=1", *NARROW]
    yield 4, [*sharded, "model.attn_pdrop=0.1"]
    line = ["TENSOR_PARALLEL=4", "MODE=sequence", *NARROW, "context=ring"]
    yield 4, [*line, "BATCH_SIZE=1", "keep_gathers=True", "precision=bf16"]
    yield 4, [*line, "BATCH_SIZE=3", "SEQ_LEN=45"]
    for ranks, stage in ((1, 2), (2, 1), (2, 2), (3, 2), (2, 3)):
        zero = [f"zero.stage={stage}", "model.vocab_size=4000", "SEQ_LEN=16"]
        yield ranks, [*zero, "NUM_MICRO_BATCHES=2", "precision=bf16", "model.checkpoint=True"]
        yield ranks, [*zero, "model.tie_embeddings=False"]
    deep = ["TENSOR_PARALLEL=2", "MODE=2.5d", "DEPTH=2", "zero.depth=True"]
    for ranks, stage in ((2, 1), (2, 2), (2, 3), (4, 1), (4, 2), (4, 3), (6, 2)):
        large = ["model.vocab_size=4000", "SEQ_LEN=16"]
        yield ranks, [*deep, f"zero.stage={stage}", *large, "precision=bf16"]
    yield 4, [*deep, "zero.stage=2", *PIPELINE, "BATCH_SIZE=16"]
    yield 16, [*deep, "zero.stage=3", "TENSOR_PARALLEL=8", "model.vocab_size=4000"]
    for schedule in SCHEDULES:
        yield 2, [*PIPELINE, *schedule]
    yield 3, ["PIPELINE=3", "NUM_MICRO_BATCHES=8", "model.n_layer=3"]
    yield 4, [*PIPELINE, "zero.stage=2", "precision=bf16"]


CASES = [(ranks, tuple(overrides)) for ranks, overrides in cases()]
EACH = pytest.mark.parametrize(
    ("ranks", "overrides"), CASES, ids=[f"{n}-{' '.join(o)}" for n, o in CASES]
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "measured.py"
    path.write_text(CONFIG)
    return path


def ranks_to_measure(plan: Plan) -> list[int]:
    """List one rank per pipeline stage; of several, the second, which exchanges data in every mode
    that does. If samples are sharded, one of each place in a group, since memory and bytes differ
    by place, off the diagonal of a grid, whose ranks swap no rows of the embedding."""
    tensor, axes = plan.layout.tensor, plan.row_order.gathered_axes
    ranks = [min(tensor - 1, 1)]
    if not plan.row_order.is_whole:
        by_rank = {rank: plan.layout.coordinates(rank) for rank in range(tensor)}
        swapping = sorted(
            by_rank, key=lambda rank: by_rank[rank].get("r") != by_rank[rank].get("c")
        )
        places = {tuple(by_rank[rank][axis] for axis in axes): rank for rank in swapping}
        ranks = sorted(places.values())
    return [stage * tensor + rank for stage in range(plan.layout.pipeline) for rank in ranks]


def test_bytes_of_the_message_of_a_step_equal_the_estimate(config: Path) -> None:
    """The measurements above replace the real message, whose contents would be undefined."""
    plan = make_plan(config, gpus=3, environ={})
    with world_of_one(1, 3):
        run = open_run(1, 3, config, ())
        run.stepper.gradients.zero()
        run.world.traffic.reset()
        run.stepper.all_reduce_result(1, torch.tensor(1.0), 1.0, run.stepper.host_message())
    sent = run.world.traffic.bytes["world", "all_reduce"]
    with patch.object(LocalShapes, "uses_gloo_pairs", False):
        assert estimated_sends(estimate(plan, device="cpu"))["world", "all_reduce"] == (1, sent)


@EACH
@pytest.mark.filterwarnings("ignore")
def test_allocations_and_traffic_of_a_rank_equal_the_estimate(
    config: Path, ranks: int, overrides: tuple[str, ...]
) -> None:
    plan = make_plan(config, gpus=ranks, overrides=overrides, environ={})
    with patch.object(LocalShapes, "uses_gloo_pairs", False):
        result = estimate(plan, device="cpu")
    measured: list[MeasuredMemory] = []
    for rank in ranks_to_measure(plan):
        with world_of_one(rank, ranks):
            measured.append(measure(rank, ranks, config, overrides))
    for one in measured:
        stage = result.stages[one.stage]
        fullest = max(other.most for other in measured if other.stage == one.stage)
        assert stage.parameters == one.parameters
        assert stage.memory.total == pytest.approx(fullest, rel=WITHIN)
        assert stage.after_step.total == pytest.approx(one.left, rel=WITHIN)
    busiest = max(measured, key=lambda one: sum(sent for _, sent in one.sent.values()))
    assert estimated_sends(result) == busiest.sent


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, ("precision=bf16", "loss_chunk=None")),
        (4, ("TENSOR_PARALLEL=4", "MODE=2d", "model.tie_embeddings=False")),
    ],
)
def test_padding_of_tables_for_a_gpu_is_in_the_estimate(
    config: Path, ranks: int, overrides: tuple[str, ...]
) -> None:
    with patch.dict(ROW_MULTIPLE, cpu=ROW_MULTIPLE["cuda"]):
        test_allocations_and_traffic_of_a_rank_equal_the_estimate(config, ranks, overrides)
