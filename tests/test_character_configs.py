"""The configs of character GPTs train end to end with a small model: data parallel, fully sharded
and offloaded, to the losses of one process, with the vocabulary of the text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from engine.plan import make_plan
from models.parameters import parameter_count
from tests.support.programs import all_by_hand

CONFIGS = Path(__file__).parents[1] / "gpt_configs"
TEXT = "a quick brown fox jumps over the lazy dog; " * 20
SMALL = (
    *("MAX_STEPS=2", "SEQ_LEN=16", "precision=float64"),
    *("model.n_layer=2", "model.n_head=2", "model.n_embd=16"),
    *("model.embd_pdrop=0", "model.resid_pdrop=0", "model.attn_pdrop=0"),
    *("data.path=text.txt", "log.tensorboard=False", "eval.batches=1"),
)
CHARS = ("chars_ddp", "chars_fsdp", "chars_fsdp_offload")
BILLIONS = ("billions_1b7", "billions_10b", "billions_20b", "billions_45b")


def train(folder: Path, ranks: int, configs: tuple[str, ...]) -> list[tuple[list[float], int]]:
    """Train each config on ``ranks`` with the same samples in a step; return its losses and its
    vocabulary."""
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT)
    commands = []
    for config in configs:
        short = ["data.truncate=1.0"] if config in CHARS else ["lr_scheduler.warmup=16"]
        arguments = [f"--config={CONFIGS / config}.py", *SMALL, f"BATCH_SIZE={4 // ranks}"]
        commands.append(("train_gpt", [*arguments, *short, f"--output={folder / config}"]))
    for by_config in all_by_hand(ranks, commands, folder):
        assert [left.code for left in by_config] == [0] * len(configs), by_config
    results = []
    for config in configs:
        rows = (folder / config / "log.jsonl").read_text().splitlines()
        settings = json.loads((folder / config / "resolved.json").read_text())
        losses = [json.loads(row)["loss"] for row in rows]
        results.append((losses, settings["model"]["vocab_size"]))
    return results


def test_configs_train_on_two_ranks_as_on_one(tmp_path: Path) -> None:
    alone = train(tmp_path / "one", 1, (*CHARS, *BILLIONS))
    assert {size for _, size in alone} == {len(set(TEXT))}
    ddp, fsdp, offloaded, *billions = (losses for losses, _ in alone)
    assert len(ddp) == 2
    assert ddp[1] < ddp[0]
    assert fsdp == pytest.approx(ddp, rel=1e-12)
    assert offloaded == pytest.approx(ddp, rel=1e-12)
    assert all(losses == pytest.approx(billions[0], rel=1e-12) for losses in billions)
    two = train(tmp_path / "two", 2, ("chars_ddp", "chars_fsdp_offload", "billions_1b7"))
    assert {size for _, size in two} == {len(set(TEXT))}
    for (losses, _), expected in zip(two, (ddp, ddp, billions[0]), strict=True):
        assert losses == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("config", "vocabulary", "parameters"),
    [
        ("chars_ddp", 59, 25_346_048),
        ("billions_1b7", 65, 1_700_090_880),
        ("billions_10b", 65, 10_472_497_152),
        ("billions_20b", 65, 20_137_451_520),
        ("billions_45b", 65, 45_105_250_304),
    ],
)
def test_parameters_are_those_of_the_model_that_the_config_reproduces(
    config: str, vocabulary: int, parameters: int
) -> None:
    overrides = [f"model.vocab_size={vocabulary}"]
    plan = make_plan(CONFIGS / f"{config}.py", gpus=1, overrides=overrides, environ={})
    assert parameter_count(plan.settings.model) == parameters
    assert plan.settings.loss_scale.hysteresis == (2 if config in BILLIONS else 1)


def test_character_configs_make_as_many_updates_as_ten_epochs_of_all_windows() -> None:
    """minGPT-ddp on 5% of tiny Shakespeare, one GPU: 90% of the 55,641 windows, in steps of 216."""
    settings = make_plan(CONFIGS / "chars_ddp.py", gpus=1, environ={}).settings
    characters = int(0.05 * 1_115_394)
    samples = int((1 - settings.data.validation) * characters - 1) // settings.seq_len
    epochs = settings.num_epochs
    assert epochs is not None
    updates = epochs * samples / settings.batch_size
    assert updates == pytest.approx(10 * math.ceil(int(0.9 * (characters - 128)) / 216), rel=0.01)
    assert (settings.eval.epochs, settings.checkpoint.epochs) == (epochs / 10, epochs / 5)
