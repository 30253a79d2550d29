"""Names of Lightning, minGPT and minGPT-ddp set the settings that have their meaning."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.plan import Plan, make_plan

REST = "SEQ_LEN = 64\nmodel = dict(n_layer=4, n_head=4, n_embd=64)\n"
BASE = "BATCH_SIZE = 8\nMAX_STEPS = 9\n" + REST

# strategy -> (zero.stage, zero.offload, zero.offload_params, loss_scale.hysteresis)
STRATEGIES = {
    "ddp": (0, None, None, 1),
    "ddp_find_unused_parameters_false": (0, None, None, 1),
    "ddp_spawn": (0, None, None, 1),
    "deepspeed": (2, None, None, 2),
    "deepspeed_stage_1": (1, None, None, 2),
    "deepspeed_stage_2": (2, None, None, 2),
    "deepspeed_stage_2_offload": (2, "cpu", None, 2),
    "deepspeed_stage_3": (3, None, None, 2),
    "deepspeed_stage_3_offload": (3, "cpu", "cpu", 2),
    "deepspeed_stage_3_offload_nvme": (3, "nvme", "nvme", 2),
    "ddp_sharded": (2, None, None, 1),
    "ddp_fully_sharded": (3, None, None, 1),
    "fsdp": (3, None, None, 1),
}


def plan(folder: Path, text: str, *overrides: str, base: str = BASE) -> Plan:
    path = folder / "config.py"
    path.write_text(text + base)
    return make_plan(path, gpus=8, overrides=overrides, environ={})


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan(folder, text, *overrides)
    return [problem.message for problem in caught.value.problems]


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_of_lightning_set_zero_and_offloading(tmp_path: Path, name: str) -> None:
    found = plan(tmp_path, f"strategy = {name!r}\nprecision = 16\n")
    settings = found.settings
    zero = settings.zero
    states = (zero.stage, zero.offload, zero.offload_params, settings.loss_scale.hysteresis)
    assert states == STRATEGIES[name]
    assert zero.nvme_path == ("/local_nvme" if name.endswith("nvme") else None)
    assert settings.precision == "fp16"


def test_a_setting_of_the_user_outranks_the_default_of_a_strategy(tmp_path: Path) -> None:
    text = "strategy = 'deepspeed_stage_3_offload_nvme'\nprecision = 'fp16'\n"
    found = plan(
        tmp_path, text + "loss_scale = dict(hysteresis=3)\nzero = dict(nvme_path='.')\n"
    ).settings
    assert (found.loss_scale.hysteresis, found.zero.nvme_path) == (3, ".")
    assert plan(tmp_path, text, "zero.stage=1", "zero.offload_params=None").settings.zero.stage == 1


def test_the_default_of_a_strategy_gives_no_note_that_it_has_no_effect(tmp_path: Path) -> None:
    without = plan(tmp_path, "strategy = 'deepspeed'\nprecision = 'bf16'\n")
    assert not [note for note in without.notes if "hysteresis" in note]
    stated = plan(tmp_path, "loss_scale = dict(hysteresis=2)\nprecision = 'bf16'\n")
    assert [note for note in stated.notes if "hysteresis" in note]


def test_an_unknown_strategy_and_a_contradiction_are_rejected(tmp_path: Path) -> None:
    (message,) = problems(tmp_path, "strategy = 'horovod'\n")
    assert message.startswith("strategy='horovod' must be 'ddp', ")
    assert "'deepspeed_stage_3_offload'" in message
    (message,) = problems(tmp_path, "strategy = 'deepspeed_stage_2'\nzero = dict(stage=3)\n")
    assert "conflicts with" in message


HYDRA = [
    ("trainer_config.batch_size=128", "batch_size", 128),
    ("trainer_config.max_epochs=3", "num_epochs", 3),
    ("trainer_config.save_every=2", "checkpoint.epochs", 2),
    ("trainer_config.grad_norm_clip=0.5", "clip_grad_norm", 0.5),
    ("trainer_config.use_amp=True", "precision", "fp16"),
    ("trainer_config.use_amp=False", "precision", "float32"),
    ("trainer_config.distributed_method=fsdp", "zero.stage", 3),
    ("trainer_config.distributed_method=ddp", "zero.stage", 0),
    ("trainer_config.learning_rate=0.1", "optimizer.lr", 0.1),
    ("trainer_config.betas=(0.8,0.9)", "optimizer.betas", (0.8, 0.9)),
    ("gpt_config.n_layer=2", "model.n_layer", 2),
    ("gpt_config.resid_pdrop=0.1", "model.resid_pdrop", 0.1),
    ("gpt_config.vocab_size=60000", "model.vocab_size", 60000),
    ("optimizer_config.learning_rate=3e-4", "optimizer.lr", 3e-4),
    ("optimizer_config.weight_decay=0.1", "optimizer.weight_decay", 0.1),
    ("data_config.path=poems.txt", "data.path", "poems.txt"),
    ("data_config.block_size=32", "seq_len", 32),
    ("data_config.truncate=0.05", "data.truncate", 0.05),
    ("trainer_config.lr_decay=True", "lr_scheduler.type", "cosine_clamped"),
    ("trainer_config.lr_decay=True", "lr_scheduler.floor", 0.1),
    ("trainer_config.lr_decay=True", "lr_scheduler.by", "token"),
    ("trainer_config.lr_decay=False", "lr_scheduler.type", "constant"),
    ("trainer_config.warmup_tokens=10240", "lr_scheduler.warmup_by", "token"),
    ("data_config.train_split=0.9", "data.validation", 0.1),
    ("max_epochs=3", "num_epochs", 3),
    ("gradient_clip_val=0", "clip_grad_norm", None),
    ("accumulate_grad_batches=4", "gradient_accumulation", 4),
    ("log_every_n_steps=50", "log.every", 50),
    ("precision=32-true", "precision", "float32"),
    ("precision=bf16-mixed", "precision", "bf16"),
]


@pytest.mark.parametrize(("override", "name", "value"), HYDRA, ids=[case[0] for case in HYDRA])
def test_a_name_of_another_trainer_overrides_the_file(tmp_path, override, name, value):
    settings = plan(tmp_path, "zero = dict(stage=1)\nprecision = 'bf16'\n", override).settings
    assert attrgetter(name)(settings) == value


def test_cpu_offload_of_fsdp_offloads_parameters_and_optimizer_states(tmp_path: Path) -> None:
    """Colossal-AI's zero.cpu_offload, by contrast, offloads the states only."""
    text = "trainer_config = dict(distributed_method='fsdp', cpu_offload=True, num_workers=4)\n"
    zero = plan(tmp_path, text).settings.zero
    assert (zero.offload, zero.offload_params) == ("cpu", "cpu")
    zero = plan(tmp_path, "zero = dict(level=3, cpu_offload=True)\n").settings.zero
    assert (zero.offload, zero.offload_params) == ("cpu", None)


def test_the_file_of_mingpt_ddp_as_a_config(tmp_path: Path) -> None:
    text = """
data_config = dict(path="input.txt", block_size=128, train_split=0.9, truncate=0.05)
gpt_config = dict(n_layer=8, n_head=8, n_embd=512)
optimizer_config = dict(weight_decay=0.1, learning_rate=0.0003)
trainer_config = dict(max_epochs=10, batch_size=216, data_loader_workers=4, grad_norm_clip=1.0,
                      use_amp=True, distributed_method="ddp")
"""
    settings = plan(tmp_path, text, base="").settings
    assert (settings.batch_size, settings.num_epochs, settings.seq_len) == (216, 10, 128)
    assert (settings.model.n_layer, settings.model.n_embd, settings.model.block_size) == (
        8,
        512,
        128,
    )
    assert (settings.optimizer.lr, settings.optimizer.weight_decay) == (0.0003, 0.1)
    assert (settings.precision, settings.zero.stage, settings.clip_grad_norm) == ("fp16", 0, 1.0)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer_config.snapshot_path=a.pt", "log.dir"),
        ("trainer_config.use_amp=1", "must be True or False"),
        ("data_config.train_split=1.5", "must be float > 0 and <= 1"),
        ("trainer_config.distributed_method=dp", "must be 'ddp', 'fsdp'"),
        ("limit_train_batches=5", "MAX_STEPS"),
        ("hydra.run.dir=out", "log.dir"),
        ("gpt_config.n_layers=3", "did you mean model.n_layer"),
    ],
)
def test_a_name_with_another_meaning_is_rejected_with_the_setting(tmp_path, override, words):
    assert any(words in message for message in problems(tmp_path, "", override))
