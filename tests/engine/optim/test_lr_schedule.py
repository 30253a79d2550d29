"""Schedules, compared with those of torch, transformers and Colossal-AI, stepped as documented."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from engine import discover
from engine.config.sections.optimizer import LRScheduleSettings
from engine.optim.lr_schedule import lr_factor

SHAPES = discover.module_names("engine.optim.schedules")


def schedule(**settings: Any) -> LRScheduleSettings:
    return LRScheduleSettings(**{"type": "cosine", "warmup": 0, "floor": 0.0, **settings})


def factors(settings: LRScheduleSettings, total: int) -> list[float]:
    return [lr_factor(done, total, settings) for done in range(total)]


def torch_lrs(make: Callable[[torch.optim.Optimizer], LRScheduler], count: int) -> list[float]:
    """Return the learning rates of ``count`` optimizer steps under one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    taken = []
    for _ in range(count):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return taken


@pytest.mark.parametrize("shape", SHAPES)
def test_every_schedule_falls_from_the_peak_and_not_below_the_floor(shape):
    found = factors(schedule(type=shape, floor=0.2), total=50)
    assert found[0] == 1.0
    assert all(0.2 <= factor <= 1.0 for factor in found)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_up_is_linear_up_to_the_peak(shape):
    found = factors(schedule(type=shape, warmup=4), total=20)
    assert found[:5] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0])


def test_constant_schedule_stays_at_the_peak():
    assert set(factors(schedule(type="constant"), total=30)) == {1.0}


def test_cosine_schedule_equals_torchs():
    expected = torch_lrs(lambda o: CosineAnnealingLR(o, T_max=40, eta_min=0.1), 40)
    assert factors(schedule(floor=0.1), total=40) == pytest.approx(expected, rel=1e-12)


def test_linear_schedule_equals_torchs():
    expected = torch_lrs(
        lambda o: LinearLR(o, start_factor=1.0, end_factor=0.25, total_iters=40), 40
    )
    found = factors(schedule(type="linear", floor=0.25), total=40)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_decay_after_the_warm_up_equals_that_of_transformers(shape):
    transformers = pytest.importorskip("transformers.optimization")
    make = getattr(transformers, f"get_{shape}_schedule_with_warmup")
    expected = torch_lrs(lambda o: make(o, num_warmup_steps=10, num_training_steps=60), 60)
    found = factors(schedule(type=shape, warmup=10), total=60)
    assert found[10:] == pytest.approx(expected[10:], rel=1e-12, abs=1e-15)
    # transformers starts at zero; this warm-up is one step ahead on a ramp one step longer
    longer = torch_lrs(lambda o: make(o, num_warmup_steps=11, num_training_steps=60), 11)
    assert found[:10] == pytest.approx(longer[1:], rel=1e-12)


def test_linear_schedule_with_warm_up_equals_colossal_ais():
    """Its formula is run from its file: the import of its package needs more packages."""
    spec = importlib.util.find_spec("colossalai")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("Colossal-AI is not installed")
    path = f"{spec.submodule_search_locations[0]}/nn/lr_scheduler/linear.py"
    scope: dict[str, Any] = {}
    with open(path) as file:  # noqa: PTH123
        exec(file.read(), scope)
    expected = torch_lrs(lambda o: scope["LinearWarmupLR"](o, total_steps=30, warmup_steps=7), 30)
    found = factors(schedule(type="linear", warmup=7), total=30)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_shorter_total_ends_at_the_floor_and_stays():
    found = factors(schedule(total=10, floor=0.1), total=30)
    assert found[10:] == pytest.approx([0.1] * 20)
    assert found[9] > 0.1


def test_a_warm_up_longer_than_the_run_only_warms_up():
    found = factors(schedule(warmup=100), total=10)
    assert found == pytest.approx([step / 101 for step in range(1, 11)])
    assert lr_factor(100, 10, schedule(warmup=100)) == pytest.approx(1.0)


def test_cosine_is_a_half_half_way():
    assert lr_factor(50, 100, schedule()) == pytest.approx(0.5)
    assert lr_factor(25, 100, schedule()) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_schedules_need_no_torch():
    code = (
        "import sys; from types import SimpleNamespace as S;"
        "from engine.optim.lr_schedule import lr_factor;"
        "s = S(type='cosine', warmup=0, total=None, floor=0.0, by='step');"
        "assert lr_factor(0, 10, s) == 1.0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
