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
from engine.data.batches.consumed import Consumed
from engine.optim.lr_schedule import LRSchedule

SHAPES = discover.module_names("engine.optim.schedules")
AFTER_WARMUP = [shape for shape in SHAPES if shape != "cosine_from_start"]


def schedule(**settings: Any) -> LRScheduleSettings:
    return LRScheduleSettings(**{"type": "cosine", "warmup": 0, "floor": 0.0, **settings})


def factors(settings: LRScheduleSettings, total: int) -> list[float]:
    """Return the factors of ``total`` steps, all of the run."""
    return [factor(settings, Consumed(step=step), total=total) for step in range(1, total + 1)]


def factor(settings: LRScheduleSettings, at: Consumed, *, total: int = 1) -> float:
    one = Consumed(step=1, samples=1, tokens=128, epochs=0.5)
    return LRSchedule(settings=settings, per_step=one, end=Consumed(step=total)).factor(at)


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


@pytest.mark.parametrize("shape", AFTER_WARMUP)
def test_every_schedule_falls_from_the_peak_and_not_below_the_floor(shape):
    found = factors(schedule(type=shape, floor=0.2), total=50)
    assert found[0] == 1.0
    assert all(0.2 <= factor <= 1.0 for factor in found)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("shape", AFTER_WARMUP)
def test_warm_up_is_linear_up_to_the_peak(shape):
    found = factors(schedule(type=shape, warmup=4), total=20)
    assert found[:5] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0])


@pytest.mark.parametrize("by", ["epoch", "token"])
@pytest.mark.parametrize("shape", SHAPES)
def test_by_data_the_last_warm_up_step_reaches_the_peak(shape, by):
    """The position of a step is the data consumed by its end."""
    settings = schedule(type=shape, by=by, warmup=4, total=1e9)
    found = [factor(settings, Consumed(epochs=n, tokens=n)) for n in range(1, 6)]
    assert found == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1.0, 1.0])


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


def test_cosine_is_a_half_half_way():
    settings = schedule()
    assert factor(settings, Consumed(step=51), total=100) == pytest.approx(0.5)
    quarter = (1 + math.cos(math.pi / 4)) / 2
    assert factor(settings, Consumed(step=26), total=100) == pytest.approx(quarter)


def test_clamped_cosine_is_not_scaled_to_the_floor():
    found = factors(schedule(type="cosine_clamped", floor=0.1), total=100)
    cosine = factors(schedule(), total=100)
    assert found == [max(0.1, factor) for factor in cosine]
    assert found[80:] == [0.1] * 20, "acos(-0.8) / pi = 0.795"
    assert found[79] > 0.1


# Units


def test_warm_up_in_another_unit_than_the_decay_equals_its_conversion():
    """A step consumes 128 tokens and half an epoch."""
    for shape in SHAPES:
        tokens = schedule(type=shape, by="token", warmup=6 * 128, total=40 * 128, floor=0.1)
        epochs = schedule(
            type=shape, by="token", warmup=3, warmup_by="epoch", total=40 * 128, floor=0.1
        )
        for step in range(1, 45):
            at = Consumed(step=step, tokens=128 * step, epochs=step / 2)
            assert factor(epochs, at) == pytest.approx(factor(tokens, at), rel=1e-15)


def test_rate_by_tokens_or_epochs_ignores_the_steps():
    """A resume with another batch size reaches an amount of data in another step."""
    for by in ("token", "epoch"):
        settings = schedule(by=by, warmup=5, total=20)
        few, many = (factor(settings, Consumed(step=n, tokens=9, epochs=9)) for n in (3, 300))
        assert few == many
        assert few == factor(settings, Consumed(tokens=9, epochs=9))
        assert 0 < few < 1


def test_total_of_a_schedule_by_data_is_by_default_the_end_of_the_run():
    one, end = Consumed(step=1, tokens=8, epochs=0.1), Consumed(step=9, tokens=70, epochs=0.875)
    for by in ("token", "epoch"):
        found = LRSchedule(settings=schedule(type="linear", by=by), per_step=one, end=end)
        halfway = Consumed(step=4, tokens=35, epochs=0.4375)
        assert found.factor(halfway) == pytest.approx(0.5)
        assert found.factor(end) == 0.0


# Published tables of other trainers: the learning rate after each step


IMAGES = {"type": "cosine_clamped", "floor": 0.1, "warmup": 1, "total": 20, "by": "epoch"}
AFTER_EPOCH = """
    1 3.000000e-03, 2 2.979542e-03, 3 2.918726e-03, 4 2.819211e-03, 5 2.683711e-03,
    6 2.515922e-03, 7 2.320422e-03, 8 2.102543e-03, 9 1.868228e-03, 10 1.623869e-03,
    11 1.376131e-03, 12 1.131772e-03, 13 8.974569e-04, 14 6.795778e-04, 15 4.840776e-04,
    16 3.162892e-04, 17 3.000000e-04, 18 3.000000e-04, 19 3.000000e-04, 20 3.000000e-04"""
AFTER_BATCH = """
    1 7.68e-6, 2 1.536e-5, 195 1.4976e-3, 390 2.9952e-3, 391 3e-3, 3909 1.624264e-3,
    4999 9.464483e-4, 6499 3e-4"""
"""Of 391 batches an epoch: 390 of 128 pictures, and one of the other 80 of 50,000."""


def table(text: str) -> list[tuple[int, float, float]]:
    """Return step, rate and half a unit in the last digit of the rate."""
    found = []
    for pair in text.split(","):
        step, rate = pair.split()
        digits, exponent = rate.split("e")
        places = len(digits.partition(".")[2])
        found.append((int(step), float(rate), 0.5001 * 10.0 ** (int(exponent) - places)))
    return found


def test_image_gpt_rates_equal_the_published_ones():
    settings = schedule(**IMAGES)
    for epoch, rate, unit in table(AFTER_EPOCH):
        assert abs(3e-3 * factor(settings, Consumed(epochs=epoch)) - rate) <= unit, epoch
    for batch, rate, unit in table(AFTER_BATCH):
        epochs, rest = divmod(batch, 391)
        found = 3e-3 * factor(settings, Consumed(epochs=epochs + rest * 128 / 50_000))
        assert abs(found - rate) <= unit, batch
    end = 16 * 391 + 43  # the clamp begins after 16.108 epochs
    near = [16 + rest * 128 / 50_000 for rest in (end - 16 * 391 - 1, end - 16 * 391)]
    assert [factor(settings, Consumed(epochs=n)) > 0.1 for n in near] == [True, False]


def test_image_gpt_rates_by_tokens_equal_those_by_epochs():
    tokens = 50_000 * 1_023
    by_token = schedule(**IMAGES | {"by": "token", "warmup": tokens, "total": 20 * tokens})
    for epochs in (0.3, 1.0, 7.7, 16.5):
        at = Consumed(epochs=epochs, tokens=round(epochs * tokens))
        assert factor(by_token, at) == pytest.approx(factor(schedule(**IMAGES), at), rel=1e-12)


def test_rates_by_tokens_equal_the_published_ones():
    """One sample of 128 tokens a step; the decay ends after two epochs of 8,647 samples."""
    settings = schedule(
        type="cosine_clamped", floor=0.1, by="token", warmup=10_240, total=2_213_632
    )
    rates = """1 7.5e-6, 2 1.5e-5, 79 5.925e-4, 80 6.0e-4, 1000 5.957813e-4, 5000 4.869736e-4,
        8647 3.021900e-4, 17294 6.0e-5, 25941 6.0e-5"""
    for step, rate, unit in table(rates):
        found = 6e-4 * factor(settings, Consumed(step=step, tokens=128 * step))
        assert abs(found - rate) <= unit, step


@pytest.mark.parametrize(
    ("total", "rates"),
    [
        (
            18265,
            """1 2.999999978e-06, 2 5.999999824e-06, 100 2.999780342e-04, 199 5.968269093e-04,
            200 5.998242870e-04, 201 5.998225256e-04, 1000 5.956175609e-04, 9132 3.030255421e-04,
            18264 6.000004393e-06, 18265 6.000000000e-06, 20000 6.000000000e-06""",
        ),
        (36529, "100 2.999945082e-04, 200 5.999560661e-04, 18264 3.030127714e-04"),
        (43817, "200 5.999694653e-04, 21908 3.030106472e-04"),
        (500000, "200 5.999997655e-04, 250000 3.03e-04"),
    ],
)
def test_rates_of_the_compute_classes_equal_the_published_ones(total, rates):
    settings = schedule(type="cosine_from_start", warmup=200, total=total, floor=0.01)
    for step, rate, unit in table(rates):
        assert abs(6e-4 * factor(settings, Consumed(step=step)) - rate) <= unit, step


def test_schedules_need_no_torch():
    code = (
        "import sys; from types import SimpleNamespace as S;"
        "from engine.optim.lr_schedule import LRSchedule;"
        "from engine.data.batches.consumed import Consumed;"
        "s = S(type='cosine', warmup=0, warmup_by='step', total=None, floor=0.0, by='step');"
        "end = Consumed(step=10);"
        "assert LRSchedule(settings=s, per_step=end, end=end).factor(Consumed(step=1)) == 1.0;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
