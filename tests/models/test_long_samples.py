"""A sample of 32,768 tokens, which four ranks hold together, trains as in one process and within
the predicted memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from torch.profiler import ProfilerActivity, profile, record_function

from engine.estimate.estimate import estimate
from engine.plan import make_plan
from tests.support.allocations import allocated
from tests.support.runs import open_run
from tests.support.worlds import run_world

CONFIG = """
BATCH_SIZE = 1
SEQ_LEN = 32768
MAX_STEPS = 2
model = dict(n_layer=1, n_head=2, n_embd=32, vocab_size=64)
data = dict(type="synthetic")
"""
LAYOUTS = {
    "serial": (),
    "2d": ("TENSOR_PARALLEL=4", "MODE=2d"),
    "sequence": ("TENSOR_PARALLEL=4", "MODE=sequence"),
    "sequence, zero 3": (
        *("TENSOR_PARALLEL=4", "MODE=sequence"),
        *("zero.stage=3", "zero.depth=True", "model.checkpoint=True"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """Losses of two steps, and the peak memory of the second."""

    losses: list[float]
    peak: int


def train_long(rank: int, size: int, config: Path, overrides: tuple[str, ...]) -> LongRun:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run = open_run(rank, size, config, overrides)
        first = run.step(1)
        with record_function("second step"):
            second = run.step(2)
    peak, _ = allocated(profiler, "second step")
    return LongRun(losses=[first.loss, second.loss], peak=peak)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "long.py"
    path.write_text(CONFIG)
    return path


@cache
def trained(config: Path, layout: str) -> list[LongRun]:
    ranks = 1 if layout == "serial" else 4
    return run_world(ranks, train_long, config, LAYOUTS[layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "serial"])
def test_a_long_sample_on_four_ranks_trains_as_in_one_process(config: Path, layout: str) -> None:
    (alone,) = trained(config, "serial")
    plan = make_plan(config, gpus=4, overrides=LAYOUTS[layout], environ={})
    (stage,) = estimate(plan, device="cpu").stages
    runs = trained(config, layout)
    for run in runs:
        assert run.losses == pytest.approx(alone.losses, rel=1e-5)
    assert max(run.peak for run in runs) == pytest.approx(stage.memory.total, rel=0.03)
    assert max(run.peak for run in runs) < 0.6 * alone.peak
