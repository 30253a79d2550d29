"""What would fit: every answer is made again from its overrides, and weighed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from engine.estimate.estimate import estimate
from engine.plan import Plan, make_plan
from launch.validate.alternatives import Alternative, alternatives
from tests.launch.validate.support import CONFIG, GIB, plan, request, write

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
    """Alternatives to a plan on GPUs that hold a share of what it takes, and their memory."""
    asked = plan(path, *overrides, gpus=gpus)
    memory = int(share * taken(asked))
    found = alternatives(request(path, *overrides, gpus=gpus), asked, memory, enough=enough)
    return found, memory, asked


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
def test_every_answer_fits_when_it_is_made_again(tmp_path, share, overrides, gpus):
    path = write(tmp_path, LARGE)
    found, memory, asked = answers(path, share, *overrides, gpus=gpus)
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


def test_no_answer_only_adds_to_another_one(tmp_path):
    found, _, _ = answers(write(tmp_path, LARGE), 0.5, enough=8)
    sets = [set(one.overrides) for one in found]
    assert len(sets) > 1
    assert not any(a < b for a in sets for b in sets)


def test_mild_changes_come_first(tmp_path):
    found, _, _ = answers(write(tmp_path, LARGE), 0.95)
    assert len(found) == 5
    assert [list(changed(one)) for one in found[:2]] == [
        ["model.checkpoint"],
        ["NUM_MICRO_BATCHES"],
    ]


def test_a_larger_model_group_takes_gpus_from_the_copies_and_gives_them_their_samples(tmp_path):
    path = write(tmp_path, LARGE)
    found, _, asked = answers(path, 0.65, "model.checkpoint=True", gpus=8, enough=20)
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
    assert one.words(asked) == " ".join(one.overrides)


def test_more_gpus_are_asked_for_where_there_are_no_copies(tmp_path):
    found, _, asked = answers(write(tmp_path, LARGE), 0.6, "model.checkpoint=True", enough=20)
    (one, *_) = (one for one in found if "TENSOR_PARALLEL" in changed(one))
    gpus = one.plan.layout.gpus
    assert one.words(asked) == f"TENSOR_PARALLEL={gpus} MODE=1d --gpus {gpus}"


def test_the_mode_is_kept(tmp_path):
    path = write(tmp_path, LARGE)
    found, _, _ = answers(path, 0.4, "TENSOR_PARALLEL=4", "MODE=2d", enough=20)
    sizes = {one.plan.layout.tensor for one in found}
    assert {one.plan.layout.mode.name for one in found} == {"2d"}
    assert sizes <= {4, 16, 36, 64}
    assert len(sizes) > 1


def test_copies_along_depth_are_shared_out(tmp_path):
    """Where there are no others."""
    path = write(tmp_path, LARGE)
    deep = ("TENSOR_PARALLEL=2", "MODE=2.5d", "DEPTH=2", "model.checkpoint=True")
    found, _, _ = answers(path, 0.7, *deep, "NUM_MICRO_BATCHES=8", enough=3)
    (one,) = (one for one in found if "zero.depth" in changed(one))
    assert changed(one) == {"zero.stage": "3", "zero.depth": "True"}


def test_zero_on_more_gpus_comes_before_offloading():
    """GPT-3 with ZeRO 3, whose file is for 64 GPUs, when none are said."""
    path = SHIPPED / "gpt3_zero3_min.py"
    asked = plan(path)
    found = alternatives(request(path), asked, 80 * GIB, enough=2)
    assert found[0].words(asked) == "--gpus 64"
    assert found[0].plan.global_batch == 64 * asked.global_batch
    assert found[1].overrides == ("zero.offload=cpu", "zero.offload_params=cpu")
    assert found[1].estimate.fullest.memory.host > 2**40


def test_offloading_is_found_where_there_is_but_one_gpu(tmp_path):
    path = write(tmp_path, LARGE)
    found, _, _ = answers(path, 0.5, "model.checkpoint=True", "NUM_MICRO_BATCHES=16", enough=20)
    offloading = [one for one in found if "zero.offload=cpu" in one.overrides]
    assert offloading
    assert all(one.plan.settings.zero.stage > 0 for one in offloading)
    assert all(one.estimate.fullest.memory.host > 0 for one in offloading)


def test_what_nothing_can_hold_has_no_answer_and_soon(tmp_path):
    started = time.process_time()
    found, _, _ = answers(write(tmp_path, CONFIG), 0.0)
    assert found == []
    assert time.process_time() - started < 5


def test_gpt3_has_an_answer_in_time():
    path = SHIPPED / "gpt3_pp1d.py"
    asked = plan(path)
    started = time.monotonic()
    (one,) = alternatives(request(path), asked, int(0.9 * taken(asked)), enough=1)
    assert one.plan.settings.model.n_layer == 96
    assert time.monotonic() - started < 5
