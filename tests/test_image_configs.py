"""Every image config trains end to end on CIFAR-10's format with a small model, to the losses of
one process, and on 8 ranks it has the published sizes and wastes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from engine.estimate.estimate import estimate
from engine.plan import make_plan
from tests.support.image_data import drawn, write_cifar
from tests.support.programs import all_by_hand
from tests.support.runs import open_run

CONFIGS = Path(__file__).parents[1] / "gpt_configs"
SMALL = (
    "MAX_STEPS=2",
    "GLOBAL_BATCH_SIZE=4",
    "NUM_MICRO_BATCHES=1",
    "model.n_layer=2",
    "model.n_head=4",
    "model.n_embd=16",
    "model.vocab_size=32",
    "data.codes=32",
    "data.path=images",
    "checkpoint.epochs=None",
)
TWO_RANKS = {
    "image_dp": (),
    "image_ddp": (),
    "image_tp": ("TENSOR_PARALLEL=2",),
    "image_tp_amp": ("TENSOR_PARALLEL=2",),
    "image_tp_zero": ("TENSOR_PARALLEL=1", "MODE=None"),
}
FOUR_RANKS = {"image_tp": ("TENSOR_PARALLEL=4",), "image_tp_zero": ("TENSOR_PARALLEL=2",)}
BATCHES = dict.fromkeys(TWO_RANKS, 400) | {"image_dp": 64, "image_ddp": 72}
WITHIN = 2e-3
"""Of a loss in fp16, after two steps of Adam."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that contains CIFAR-10's binary version, of few images."""
    path = tmp_path_factory.mktemp("cifar")
    (path / "images").mkdir()
    write_cifar(path / "images" / "data_batch_1.bin", drawn(12))
    write_cifar(path / "images" / "test_batch.bin", drawn(3, seed=1))
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[float]:
    """Return the losses of two steps and of a validation in this process."""
    overrides = [*SMALL, f"data.path={folder}/images"]
    run = open_run(0, 1, CONFIGS / "image_dp.py", overrides, steps=2)
    return [run.step(1).loss, run.step(2).loss, run.validate().loss]


def check(
    ranks: int, configs: Mapping[str, tuple[str, ...]], folder: Path, alone: list[float]
) -> None:
    """Train each config on ``ranks`` and compare its losses with those of one process."""
    commands = [
        (
            "train_gpt",
            [f"--config={CONFIGS / name}.py", *SMALL, *more, f"--output={name}-{ranks}"],
        )
        for name, more in configs.items()
    ]
    for rank in all_by_hand(ranks, commands, folder):
        assert [left.code for left in rank] == [0] * len(commands), [left.err for left in rank]
    for name in configs:
        log = (folder / f"{name}-{ranks}" / "log.jsonl").read_text().splitlines()
        first, second = map(json.loads, log)
        losses = [first["loss"], second["loss"], second["val_loss"]]
        assert losses == pytest.approx(alone, rel=WITHIN), name
        assert second["tokens"] == 2 * 4 * 1023
        saved = json.loads((folder / f"{name}-{ranks}" / "tokenizer.json").read_text())
        assert (saved["type"], len(saved["codebook"])) == ("images", 32)


def test_every_config_trains_to_the_losses_of_one_process(folder: Path, alone: list[float]) -> None:
    check(2, TWO_RANKS, folder, alone)


@pytest.mark.slow
def test_tensor_parallel_configs_train_on_four_ranks(folder: Path, alone: list[float]) -> None:
    check(4, FOUR_RANKS, folder, alone)


def test_every_config_is_tested() -> None:
    names = {path.stem for path in CONFIGS.glob("image_*.py")} - {"image_digits"}
    assert names == TWO_RANKS.keys()


@pytest.mark.parametrize("gpus", [8, 2])
@pytest.mark.parametrize("name", TWO_RANKS)
def test_configs_have_the_published_sizes_and_waste_nothing(name: str, gpus: int) -> None:
    overrides = TWO_RANKS[name] if gpus == 2 else ()
    plan = make_plan(CONFIGS / f"{name}.py", gpus=gpus, overrides=overrides, environ={})
    settings = plan.settings
    assert estimate(plan, device="cpu").parameters == 10_001_664
    assert plan.global_batch == BATCHES[name]
    assert plan.row_order.is_whole, "samples are sharded"
    assert plan.row_order.rows == plan.micro_batch * settings.seq_len, "padded"
    assert not [line for line in plan.warnings if "pad" in line]
