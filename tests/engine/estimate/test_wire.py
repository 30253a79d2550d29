"""Bytes on the wire: the ranks' own counts, the loopback device's and the formula's are equal.

The device is that of a network namespace of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engine.estimate.estimate import estimate
from engine.plan import make_plan

ROOT = Path(__file__).parents[3]
NAMESPACE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"']
WITHIN = 0.02
WIDTH, LAYERS, VOCABULARY, LENGTH = 256, 2, 1024, 16
CONFIG = f"""
BATCH_SIZE = 1
SEQ_LEN = {LENGTH}
MAX_STEPS = 4
model = dict(n_layer={LAYERS}, n_head=8, n_embd={WIDTH}, vocab_size={VOCABULARY})
data = dict(type="synthetic")
optimizer = dict(type="sgd")
"""
BLOCKS = LAYERS * 12 * WIDTH**2
TABLE = VOCABULARY * WIDTH
REST = LAYERS * 13 * WIDTH + 2 * WIDTH + LENGTH * WIDTH
"""Entries: 1.9 million in all. The rest is biases, norms and positions, which ZeRO does not cut."""

FLOAT32, BF16 = 4, 2


@dataclass(frozen=True, kw_only=True)
class WireCase:
    """A measured case, and the bytes that a rank of n sends in a step by the formula, over (n - 1)
    / n.

    Weights are gathered in the compute type, gradients are summed in float32. The token table is
    looked up and is the head too: stage 3 gathers it twice, and stages 2 and 3 scatter twice.
    """

    overrides: tuple[str, ...]
    formula: int
    axes: tuple[str, ...] = ("data",)


ALL_REDUCED = 2 * FLOAT32 * REST
STAGE_3 = WireCase(
    overrides=("zero.stage=3",),
    formula=3 * FLOAT32 * BLOCKS + 4 * FLOAT32 * TABLE + ALL_REDUCED,
)
CASES = [
    WireCase(overrides=(), formula=2 * FLOAT32 * (BLOCKS + TABLE + REST)),
    WireCase(overrides=("zero.stage=1",), formula=2 * FLOAT32 * (BLOCKS + TABLE) + ALL_REDUCED),
    WireCase(
        overrides=("zero.stage=2",),
        formula=2 * FLOAT32 * BLOCKS + 3 * FLOAT32 * TABLE + ALL_REDUCED,
    ),
    STAGE_3,
    WireCase(
        overrides=("zero.stage=3", "model.tie_embeddings=False"),
        formula=3 * FLOAT32 * BLOCKS + 2 * 2 * FLOAT32 * TABLE + ALL_REDUCED,
    ),
    WireCase(
        overrides=("zero.stage=3", "model.checkpoint=True"),  # a block is gathered once more
        formula=4 * FLOAT32 * BLOCKS + 4 * FLOAT32 * TABLE + ALL_REDUCED,
    ),
    WireCase(
        overrides=("zero.stage=3", "keep_gathers=True"),
        formula=2 * FLOAT32 * BLOCKS + 4 * FLOAT32 * TABLE + ALL_REDUCED,
    ),
    WireCase(
        overrides=("zero.stage=1", "precision=bf16"),
        formula=(FLOAT32 + BF16) * (BLOCKS + TABLE) + ALL_REDUCED,
    ),
    WireCase(
        overrides=("zero.stage=3", "precision=bf16"),
        formula=(FLOAT32 + 2 * BF16) * BLOCKS + 2 * (FLOAT32 + BF16) * TABLE + ALL_REDUCED,
    ),
]
DEEP = WireCase(  # weights are shared out over depth, then over data
    overrides=(*STAGE_3.overrides, "TENSOR_PARALLEL=2", "MODE=2.5d", "DEPTH=2", "zero.depth=True"),
    formula=STAGE_3.formula,
    axes=("d", "data", "tensor"),  # two ranks share the sample: keys and values, few bytes
)
WORLDS = {2: CASES, 4: [CASES[0], STAGE_3, DEEP]}
BY_WORLD = [(ranks, case) for ranks, cases in WORLDS.items() for case in cases]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "wide.py"
    path.write_text(CONFIG)
    return path


@cache
def may_leave_the_network() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*NAMESPACE, "sh", "true"], capture_output=True).returncode == 0


@cache
def measured(config: Path) -> dict[tuple[int, bool, tuple[str, ...]], list[dict[str, Any]]]:
    """Measure all ranks, by world, use of the library's own collectives, and overrides."""
    if not may_leave_the_network():
        pytest.skip("no network namespace of our own: `unshare --map-root-user --net` is refused")
    keys = [(ranks, False, case.overrides) for ranks, case in BY_WORLD]
    keys.append((2, True, STAGE_3.overrides))
    jobs = [
        [ranks, [{"overrides": o, "library": lib} for n, lib, o in keys if n == ranks]]
        for ranks in WORLDS
    ]
    program = [sys.executable, "-m", "tests.support.wire", str(config), json.dumps(jobs)]
    done = subprocess.run([*NAMESPACE, "sh", *program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs = json.loads(done.stdout)
    return {
        key: results
        for ranks, of_world in zip(WORLDS, outputs, strict=True)
        for key, results in zip([w for w in keys if w[0] == ranks], of_world, strict=True)
    }


def each(cases: list[tuple[int, WireCase]]) -> Callable[..., Any]:
    names = [f"{ranks}-{' '.join(case.overrides) or 'data parallel'}" for ranks, case in cases]
    return pytest.mark.parametrize(("ranks", "case"), cases, ids=names)


@each(BY_WORLD)
def test_bytes_on_the_wire_equal_the_formula(config: Path, ranks: int, case: WireCase) -> None:
    for of_rank in measured(config)[ranks, False, case.overrides]:
        expected = case.formula * (ranks - 1) / ranks
        assert of_rank["device"] / ranks == pytest.approx(expected, rel=WITHIN)


@each(BY_WORLD)
def test_bytes_counted_by_ranks_equal_the_formula(config: Path, ranks: int, case: WireCase) -> None:
    """The bytes are counted by axis; the control all-reduce of a step has few bytes."""
    for of_rank in measured(config)[ranks, False, case.overrides]:
        expected = case.formula * (ranks - 1) / ranks
        counted = of_rank["counted"]
        assert counted.pop("world") < 1000
        assert counted.keys() == {*case.axes}
        assert sum(counted.values()) == pytest.approx(expected, rel=WITHIN)


@each(BY_WORLD)
def test_estimated_bytes_equal_the_formula(config: Path, ranks: int, case: WireCase) -> None:
    plan = make_plan(config, gpus=ranks, overrides=case.overrides, environ={})
    traffic = estimate(plan, device="cpu").traffic
    expected = case.formula * (ranks - 1) / ranks
    assert sum(one.bytes for one in traffic) == pytest.approx(expected, rel=WITHIN)


def test_all_reduce_in_place_of_reduce_scatter_is_detected(config: Path) -> None:
    """gloo's own reduce-scatter sends an all-reduce's bytes."""
    for of_rank in measured(config)[2, True, STAGE_3.overrides]:
        assert of_rank["device"] / 2 > 1.2 * STAGE_3.formula / 2
