"""Alternatives: each is planned and estimated again from its overrides."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from engine.estimate.estimate import estimate
from engine.estimate.result import Estimate
from engine.formatting import format_bytes
from engine.plan import Plan, make_plan
from launch.validate import alternatives as searching
from launch.validate.alternatives import Alternative, alternatives, shortened
from launch.validate.inspection import inspect_config
from launch.validate.mode_comparison import compare_modes
from launch.validate.search_layouts import spaces
from launch.validate.search_space import KnobSteps, SearchSpace
from tests.launch.validate.support import GIB, plan, request, write

SHIPPED = Path(__file__).parents[3] / "gpt_configs"
LARGE = """
BATCH_SIZE = 16
SEQ_LEN = 1024
MAX_STEPS = 10
model = dict(type='gpt2_small')
data = dict(type='synthetic')
"""


def taken(found: Plan) -> int:
    return estimate(found).fullest.memory.total


def answers(
    path: Path, share: float, *overrides: str, gpus: int | None = None, enough: int = 5
) -> tuple[list[Alternative], int, Plan]:
    """Return the alternatives to a plan on GPUs of ``share`` of the memory that it needs, the bytes
    of such a GPU, and the plan."""
    asked = plan(path, *overrides, gpus=gpus)
    memory = int(share * taken(asked))
    found = alternatives(request(path, *overrides, gpus=gpus), asked, memory, enough=enough)
    return list(found.fitting), memory, asked


def changed(one: Alternative) -> dict[str, str]:
    return dict(override.split("=") for override in one.overrides)


@pytest.mark.parametrize("share", [0.95, 0.5, 0.2])
@pytest.mark.parametrize(
    ("overrides", "gpus"),
    [
        ((), None),
        (("PIPELINE=2", "NUM_MICRO_BATCHES=4"), 8),
        (("TENSOR_PARALLEL=4", "MODE=2d"), 8),
        (("zero.stage=1",), 4),
    ],
)
def test_every_alternative_fits_when_planned_again(tmp_path, share, overrides, gpus):
    path = write(tmp_path, LARGE)
    found, memory, asked = answers(path, share, *overrides, gpus=gpus, enough=3)
    assert found
    for one in found:
        again = make_plan(
            path,
            gpus=one.plan.layout.gpus,
            overrides=[*overrides, *one.overrides],
            environ={},
        )
        assert again.fingerprint == one.plan.fingerprint
        assert taken(again) == one.estimate.fullest.memory.total <= memory
        assert again.settings.model.n_layer == asked.settings.model.n_layer
        if again.layout.gpus == asked.layout.gpus:
            assert again.global_batch == asked.global_batch


def test_no_alternative_contains_another(tmp_path):
    found, _, _ = answers(write(tmp_path, LARGE), 0.5, enough=8)
    sets = [set(one.overrides) for one in found]
    assert len(sets) > 1
    assert not any(a < b for a in sets for b in sets)


def test_alternatives_are_ordered_by_cost(tmp_path):
    found, _, _ = answers(write(tmp_path, LARGE), 0.95)
    assert len(found) == 5
    assert [list(changed(one)) for one in found[:2]] == [
        ["NUM_MICRO_BATCHES"],
        ["model.checkpoint"],
    ]


def test_larger_model_group_uses_the_gpus_of_copies_and_preserves_the_global_batch(tmp_path):
    path = write(tmp_path, LARGE)
    found, _, asked = answers(path, 0.65, "model.checkpoint=True", gpus=8, enough=9)
    (one, *_) = (one for one in found if "TENSOR_PARALLEL" in changed(one))
    tensor = one.plan.layout.tensor
    assert changed(one) == {
        "TENSOR_PARALLEL": f"{tensor}",
        "MODE": "1d",
        "BATCH_SIZE": f"{16 * tensor}",
        "NUM_MICRO_BATCHES": f"{tensor}",
    }
    assert (one.plan.layout.gpus, one.plan.layout.data) == (8, 8 // tensor)
    assert one.plan.micro_batch == asked.micro_batch
    assert one.command_words(asked) == " ".join(one.overrides)


@pytest.mark.parametrize("factor", ["", "BATCH_SIZE = 16\n", "gradient_accumulation = 2\n"])
def test_every_alternative_keeps_a_global_batch_size(tmp_path, factor):
    """On the plan's GPUs and on more, and in the comparison of modes."""
    path = write(tmp_path, LARGE.replace("BATCH_SIZE = 16\n", f"GLOBAL_BATCH_SIZE = 64\n{factor}"))
    found, _, asked = answers(path, 0.4, "model.checkpoint=True", gpus=2, enough=8)
    assert len({one.plan.layout.data for one in found}) > 1
    for one in found:
        assert one.plan.global_batch == asked.global_batch == 64
        gpus = one.plan.layout.gpus
        again = make_plan(
            path, gpus=gpus, overrides=["model.checkpoint=True", *one.overrides], environ={}
        )
        assert again.fingerprint == one.plan.fingerprint
    rows = compare_modes(request(path, gpus=2), plan(path, gpus=2))
    assert len(rows) > 1
    assert {row.plan.global_batch for row in rows} == {64}


def test_more_gpus_are_suggested_if_there_are_no_copies(tmp_path):
    found, _, asked = answers(write(tmp_path, LARGE), 0.6, "model.checkpoint=True", enough=9)
    (one, *_) = (one for one in found if "TENSOR_PARALLEL" in changed(one))
    gpus = one.plan.layout.gpus
    assert one.command_words(asked) == f"TENSOR_PARALLEL={gpus} MODE=1d --gpus {gpus}"


def test_added_gpus_preserve_the_mode(tmp_path):
    path = write(tmp_path, LARGE)
    found, _, asked = answers(path, 0.3, "TENSOR_PARALLEL=4", "MODE=2d", enough=12)
    more = [one.plan.layout for one in found if one.plan.layout.gpus > asked.layout.gpus]
    assert more
    assert {layout.mode.name for layout in more} == {"2d"}
    assert {layout.tensor for layout in more} <= {4, 16, 64}


def test_replicas_along_depth_are_sharded(tmp_path):
    """The layout has no data-parallel copies."""
    path = write(tmp_path, LARGE)
    deep = ("TENSOR_PARALLEL=2", "MODE=2.5d", "DEPTH=2", "model.checkpoint=True")
    found, _, _ = answers(path, 0.7, *deep, "NUM_MICRO_BATCHES=8", enough=3)
    (one,) = (one for one in found if "zero.depth" in changed(one))
    assert changed(one) == {"zero.stage": "3", "zero.depth": "True"}


def test_zero_on_more_gpus_precedes_offloading():
    """GPT-3 with ZeRO 3, whose file is for 64 GPUs, without --gpus."""
    path = SHIPPED / "gpt3_zero3_min.py"
    asked = plan(path)
    found = alternatives(request(path), asked, 80 * GIB, enough=2).fitting
    assert found[0].command_words(asked) == "--gpus 64"
    assert found[0].plan.global_batch == 64 * asked.global_batch
    *_, states, weights = found[1].overrides
    assert (states, weights) == ("zero.offload=cpu", "zero.offload_params=cpu")
    assert found[1].estimate.fullest.memory.host > 2**40


def test_offloading_is_suggested_on_a_single_gpu(tmp_path):
    path = write(tmp_path, LARGE)
    found, _, _ = answers(path, 0.5, "model.checkpoint=True", "NUM_MICRO_BATCHES=16", enough=9)
    offloading = [one for one in found if "zero.offload=cpu" in one.overrides]
    assert offloading
    assert all(one.plan.settings.zero.stage > 0 for one in offloading)
    assert all(one.estimate.fullest.memory.host > 0 for one in offloading)


def test_layout_and_smallest_micro_batch_are_combined():
    """Both changes are needed, and the micro-batch is 1/32 of the batch."""
    large = ("BATCH_SIZE=32", "model=dict(type='gpt2_large')")
    asked = request(SHIPPED / "gpt2_vanilla.py", *large, gpus=4)
    (one,) = alternatives(asked, asked.plan(), int(4.65 * GIB), enough=1).fitting
    assert " ".join(one.overrides) == (
        "TENSOR_PARALLEL=4 MODE=1d BATCH_SIZE=128 NUM_MICRO_BATCHES=32"
    )


def by_hand(path: Path, gpus: int) -> list[int]:
    """Return the sizes of all legal combinations of a few settings on ``gpus`` GPUs, ascending."""
    sizes = []
    asked = plan(path, gpus=gpus)
    for tensor, pipeline, micro, zero, checkpoint in product(
        (1, 2, 4), (1, 2, 4), (1, 2, 8), (0, 3), (False, True)
    ):
        data, rest = divmod(gpus, tensor * pipeline)
        batch = asked.global_batch // data if not rest else 0
        overrides = [
            *(f"TENSOR_PARALLEL={tensor}", f"MODE={'1d' if tensor > 1 else 'serial'}"),
            *(f"PIPELINE={pipeline}", f"BATCH_SIZE={batch}"),
            *(f"NUM_MICRO_BATCHES={batch // micro}", f"zero.stage={zero}"),
            f"model.checkpoint={checkpoint}",
        ]
        if not rest:
            sizes.append(taken(plan(path, *overrides, gpus=gpus)))
    return sorted(sizes)


def test_search_equals_exhaustive_search(tmp_path):
    path = write(tmp_path, LARGE.replace("'gpt2_small'", "'gpt2_small', n_layer=4"))
    asked = plan(path, gpus=4)
    sizes = [size for size in by_hand(path, 4) if size < taken(asked)]
    for memory in (sizes[0], sizes[len(sizes) // 3], sizes[-1]):
        (one,) = alternatives(request(path, gpus=4), asked, memory, enough=1).fitting
        cost, least = next(  # of all variants, each weighed
            (cost, space.overrides(steps))
            for cost, space, steps in _all_by_cost(asked)
            if taken(plan(path, *space.overrides(steps), gpus=4)) <= memory
        )
        costs = {space.overrides(steps): cost for cost, space, steps in _all_by_cost(asked)}
        assert costs[one.overrides] == cost, (one.overrides, least)


def _all_by_cost(asked: Plan) -> list[tuple[float, SearchSpace, KnobSteps]]:
    found = [
        (cost, space, steps)
        for space in spaces(asked, gpus_given=True)
        if space.layout.gpus == asked.layout.gpus
        for cost, steps in space.variants()
        if cost
    ]
    return sorted(found, key=lambda one: one[0])


def test_config_too_large_for_any_layout_has_nearest_misses_after_a_bounded_search(
    tmp_path, monkeypatch
):
    path = write(tmp_path, LARGE.replace("'gpt2_small'", "'gpt2_small', n_layer=4"))
    made = []

    def counted(plan: Plan, **more: Any) -> Estimate:
        made.append(plan)
        return estimate(plan, **more)

    monkeypatch.setattr(searching, "estimate", counted)
    found = inspect_config(request(path, gpus=4), 2**20)
    assert 10 < len(made) < 300
    assert found.case is not None
    assert found.case.alternatives == ()
    sizes = [one.estimate.fullest.memory.total for one in found.case.nearest]
    assert len(sizes) == 3
    assert sizes == sorted(sizes)
    assert sizes[0] <= by_hand(path, 4)[0]
    again = plan(
        path, *found.case.nearest[0].overrides, gpus=found.case.nearest[0].plan.layout.gpus
    )
    assert taken(again) == sizes[0]
    (problem,) = found.problems
    assert "nothing fits (tried: " in problem
    for words in (" layouts", "down to 1 sample", "ZeRO up to stage 3", "offloading to the host"):
        assert words in problem
    assert f"{format_bytes(sizes[0] - 2**20)} too much, with " in problem


@pytest.mark.parametrize("overrides", [(), ("NUM_MICRO_BATCHES=48",), ("schedule=gpipe",)])
@pytest.mark.parametrize("name", ["gpt2_pp1d", "gpt2_zero3_pp1d", "gpt3_pp2d", "gpt2_vanilla"])
def test_shortened_plan_needs_at_most_slightly_less_memory(name, overrides):
    asked = plan(SHIPPED / f"{name}.py", *overrides, "BATCH_SIZE=96")
    brief, ids = taken(shortened(asked)), 2 * 8 * 96 * asked.settings.seq_len * 2
    assert taken(asked) - ids <= brief <= taken(asked)


def test_gpt3_has_an_alternative():
    path = SHIPPED / "gpt3_pp1d.py"
    asked = plan(path)
    (one,) = alternatives(request(path), asked, int(0.9 * taken(asked)), enough=1).fitting
    assert one.plan.settings.model.n_layer == 96
