"""Every setting of training changes the result of a probe. ELSEWHERE names the tests of settings
that no short probe can distinguish."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from engine.config.schema import all_settings
from tests.support.setting_effects import (
    CONFIG,
    HELD_OUT,
    OTHER,
    TEXT,
    SettingEffect,
    accelerator_seconds,
    blocks_run,
    calls,
    compiled,
    determinism,
    files,
    first_ids,
    held_out_ids,
    homes,
    library,
    loss_chunks,
    matmuls,
    micro_batches,
    order,
    overflowing,
    pieces,
    scales,
    skips,
    statistics_of,
    steps,
    tokenised_in,
    training,
    validations,
)

TESTS = Path(__file__).parents[1]

FROM_TEXT = ("data.type=text", "data.tokenizer=char", "data.path={folder}/text", "SEQ_LEN=4")
EPOCHS = (*FROM_TEXT, "MAX_STEPS=None", "NUM_EPOCHS=2")
DIGITS = ("data.type=images", "data.path={folder}/grey.npy", "SEQ_LEN=15", "model.vocab_size=256")
ONE_D = ("TENSOR_PARALLEL=2", "MODE=1d")
STAGES = ("PIPELINE=2", "NUM_MICRO_BATCHES=4")
JUMPS = ("loss_spike.factor=1.001", "loss_spike.window=1", "optimizer.lr=1.0")
DECAYS = ("lr_scheduler.type=linear",)

EFFECTS = {
    "global_batch_size": SettingEffect(change="GLOBAL_BATCH_SIZE=8", probe=micro_batches),
    "batch_size": SettingEffect(change="BATCH_SIZE=8", probe=micro_batches),
    "seq_len": SettingEffect(change="SEQ_LEN=6", probe=micro_batches),
    "num_epochs": SettingEffect(change="NUM_EPOCHS=3", probe=steps, given=EPOCHS),
    "max_steps": SettingEffect(change="MAX_STEPS=5", probe=steps),
    "num_micro_batches": SettingEffect(change="NUM_MICRO_BATCHES=2", probe=micro_batches),
    "gradient_accumulation": SettingEffect(change="gradient_accumulation=2", probe=micro_batches),
    "tensor_parallel": SettingEffect(change="TENSOR_PARALLEL=4", probe=pieces, given=ONE_D),
    "mode": SettingEffect(change="MODE=2d", probe=pieces, given=("TENSOR_PARALLEL=4", "MODE=1d")),
    "depth": SettingEffect(
        change="DEPTH=2", probe=pieces, given=("TENSOR_PARALLEL=8", "MODE=2.5d", "DEPTH=8")
    ),
    "pipeline": SettingEffect(change="PIPELINE=2", probe=pieces),
    "model.preset": SettingEffect(
        change="model.type=gpt2_medium",
        probe=pieces,
        given=("model=dict(type='gpt2_small')",),
    ),
    "model.n_layer": SettingEffect(change="model.n_layer=5", probe=pieces),
    "model.n_head": SettingEffect(change="model.n_head=2", probe=training),
    "model.n_embd": SettingEffect(change="model.n_embd=32", probe=pieces),
    "model.head_dim": SettingEffect(change="model.head_dim=8", probe=pieces),
    "model.n_inner": SettingEffect(change="model.n_inner=32", probe=pieces),
    "model.vocab_size": SettingEffect(change="model.vocab_size=48", probe=pieces),
    "model.block_size": SettingEffect(change="model.block_size=16", probe=pieces),
    "model.embd_pdrop": SettingEffect(change="model.embd_pdrop=0.1", probe=training),
    "model.resid_pdrop": SettingEffect(change="model.resid_pdrop=0.1", probe=training),
    "model.attn_pdrop": SettingEffect(change="model.attn_pdrop=0.1", probe=training),
    "model.tie_embeddings": SettingEffect(change="model.tie_embeddings=False", probe=pieces),
    "model.checkpoint": SettingEffect(change="model.checkpoint=True", probe=blocks_run),
    "model.num_chunks": SettingEffect(change="model.num_chunks=2", probe=pieces, given=STAGES),
    "model.activation": SettingEffect(change="model.activation=gelu", probe=training),
    "model.layer_norm_epsilon": SettingEffect(
        change="model.layer_norm_epsilon=0.1", probe=training
    ),
    "model.init_std": SettingEffect(change="model.init_std=0.1", probe=training),
    "model.init_residual": SettingEffect(change="model.init_residual=none", probe=training),
    "model.init_positions": SettingEffect(change="model.init_positions=zero", probe=training),
    "model.scale_embedding": SettingEffect(change="model.scale_embedding=True", probe=training),
    "schedule": SettingEffect(change="schedule=gpipe", probe=order),
    "stages": SettingEffect(
        change="stages=balanced", probe=pieces, given=(*STAGES, "model.vocab_size=2000")
    ),
    "optimizer.type": SettingEffect(change="optimizer.type=sgd", probe=training),
    "optimizer.lr": SettingEffect(change="optimizer.lr=0.01", probe=training),
    "optimizer.betas": SettingEffect(change="optimizer.betas=(0.5,0.9)", probe=training),
    "optimizer.eps": SettingEffect(change="optimizer.eps=0.1", probe=training),
    "optimizer.weight_decay": SettingEffect(change="optimizer.weight_decay=0.5", probe=training),
    "optimizer.momentum": SettingEffect(
        change="optimizer.momentum=0.9", probe=training, given=("optimizer.type=sgd",)
    ),
    "optimizer.decay": SettingEffect(
        change="optimizer.decay=all", probe=training, given=("optimizer.weight_decay=0.5",)
    ),
    "lr_scheduler.type": SettingEffect(change="lr_scheduler.type=cosine", probe=training),
    "lr_scheduler.warmup": SettingEffect(change="lr_scheduler.warmup=3", probe=training),
    "lr_scheduler.total": SettingEffect(
        change="lr_scheduler.total=2", probe=training, given=DECAYS
    ),
    "lr_scheduler.floor": SettingEffect(
        change="lr_scheduler.floor=0.5", probe=training, given=DECAYS
    ),
    "lr_scheduler.by": SettingEffect(
        change="lr_scheduler.by=epoch", probe=training, given=(*FROM_TEXT, *DECAYS)
    ),
    "lr_scheduler.warmup_by": SettingEffect(
        change="lr_scheduler.warmup_by=token", probe=training, given=("lr_scheduler.warmup=3",)
    ),
    "clip_grad_norm": SettingEffect(change="clip_grad_norm=0.01", probe=training),
    "precision": SettingEffect(change="precision=bf16", probe=training),
    "loss_scale.initial": SettingEffect(change="loss_scale.initial=128.0", probe=scales),
    "loss_scale.growth_interval": SettingEffect(
        change="loss_scale.growth_interval=2", probe=scales
    ),
    "loss_scale.growth_factor": SettingEffect(
        change="loss_scale.growth_factor=4.0",
        probe=scales,
        given=("loss_scale.initial=8.0", "loss_scale.growth_interval=2"),
    ),
    "loss_scale.max": SettingEffect(
        change="loss_scale.max=9.0",
        probe=scales,
        given=("loss_scale.initial=8.0", "loss_scale.growth_interval=2"),
    ),
    "loss_scale.backoff_factor": SettingEffect(
        change="loss_scale.backoff_factor=0.25", probe=overflowing
    ),
    "loss_scale.hysteresis": SettingEffect(change="loss_scale.hysteresis=2", probe=overflowing),
    "loss_scale.min": SettingEffect(change="loss_scale.min=2.6e8", probe=overflowing),
    "loss_spike.factor": SettingEffect(
        change="loss_spike.factor=1.001", probe=skips, given=JUMPS[1:]
    ),
    "loss_spike.window": SettingEffect(change="loss_spike.window=3", probe=skips, given=JUMPS),
    "loss_spike.max_skips": SettingEffect(
        change="loss_spike.max_skips=1", probe=skips, given=JUMPS
    ),
    "zero.stage": SettingEffect(change="zero.stage=3", probe=pieces),
    "zero.depth": SettingEffect(
        change="zero.depth=True",
        probe=pieces,
        given=("TENSOR_PARALLEL=8", "MODE=2.5d", "DEPTH=8", "zero.stage=1"),
    ),
    "zero.offload": SettingEffect(change="zero.offload=cpu", probe=homes, given=("zero.stage=3",)),
    "zero.offload_params": SettingEffect(
        change="zero.offload_params=cpu", probe=homes, given=("zero.stage=3", "zero.offload=cpu")
    ),
    "data.type": SettingEffect(
        change="data.type=text",
        probe=first_ids,
        given=("data.tokenizer=char", "model.vocab_size=128"),
    ),
    "data.path": SettingEffect(change="data.path={folder}/other", probe=first_ids, given=FROM_TEXT),
    "data.tokenizer": SettingEffect(
        change="data.tokenizer=gpt2",
        probe=first_ids,
        given=(*FROM_TEXT, "model.vocab_size=50257"),
    ),
    "data.truncate": SettingEffect(change="data.truncate=0.5", probe=steps, given=EPOCHS),
    "data.codes": SettingEffect(change="data.codes=5", probe=first_ids, given=DIGITS),
    "data.codebook": SettingEffect(
        change="data.codebook={folder}/levels.npy", probe=first_ids, given=DIGITS
    ),
    "data.pixel_order": SettingEffect(change="data.pixel_order=3", probe=first_ids, given=DIGITS),
    "data.variants": SettingEffect(change="data.variants=2", probe=first_ids, given=DIGITS),
    "data.validation": SettingEffect(
        change="data.validation=0.01", probe=validations, given=FROM_TEXT
    ),
    "data.validation_path": SettingEffect(
        change="data.validation_path={folder}/held-out", probe=held_out_ids, given=FROM_TEXT
    ),
    "data.cache": SettingEffect(
        change="data.cache={folder}/mine", probe=tokenised_in, given=FROM_TEXT
    ),
    "eval.every": SettingEffect(change="eval.every=2", probe=validations),
    "eval.split": SettingEffect(
        change="eval.split=train", probe=held_out_ids, given=(*FROM_TEXT, "data.validation=0.01")
    ),
    "eval.epochs": SettingEffect(
        change="eval.epochs=0.02", probe=validations, given=(*FROM_TEXT, "eval.every=None")
    ),
    "eval.batches": SettingEffect(change="eval.batches=3", probe=validations),
    "eval.samples": SettingEffect(change="eval.samples=5", probe=validations),
    "eval.tokens": SettingEffect(change="eval.tokens=17", probe=validations),
    "log.every": SettingEffect(change="log.every=3", probe=files),
    "log.dir": SettingEffect(change="log.dir=elsewhere", probe=files),
    "log.statistics": SettingEffect(change="log.statistics=2", probe=statistics_of),
    "log.tokens_per_second": SettingEffect(
        change="log.tokens_per_second=64.0", probe=accelerator_seconds
    ),
    "log.tensorboard": SettingEffect(change="log.tensorboard=True", probe=files),
    "checkpoint.every": SettingEffect(change="checkpoint.every=2", probe=files),
    "seed": SettingEffect(change="seed=7", probe=training),
    "deterministic": SettingEffect(change="deterministic=True", probe=determinism),
    "compile": SettingEffect(change="compile=True", probe=compiled),
    "keep_gathers": SettingEffect(change="keep_gathers=True", probe=calls, given=ONE_D),
    "context": SettingEffect(
        change="context=ring",
        probe=calls,
        given=("MODE=sequence", "TENSOR_PARALLEL=8", "BATCH_SIZE=1"),
    ),
    "matmul": SettingEffect(change="matmul=onednn", probe=library),
    "loss_chunk": SettingEffect(change="loss_chunk=5", probe=loss_chunks),
}
FURTHER_VALUES = [  # values whose effect needs a probe of its own
    SettingEffect(
        change="model.checkpoint=selective", probe=matmuls, given=("model.checkpoint=True",)
    ),
    SettingEffect(change="schedule=zero_bubble", probe=order),
    *(
        SettingEffect(
            change=f"optimizer.decay={more}",
            probe=training,
            given=("optimizer.weight_decay=0.5", f"optimizer.decay={fewer}"),
        )
        for fewer, more in (("linears", "matrices"), ("matrices", "weights"), ("weights", "all"))
    ),
    SettingEffect(
        change="model.init_residual=mlp", probe=training, given=("model.init_residual=none",)
    ),
    SettingEffect(change="lr_scheduler.by=token", probe=training, given=DECAYS),
    SettingEffect(
        change="lr_scheduler.type=cosine_clamped",
        probe=training,
        given=("lr_scheduler=dict(type='cosine', floor=0.3)",),
    ),
]
ELSEWHERE = {
    "data.tokenizer_path": "engine/data/tokenizers/test_sentencepiece.py::"
    "test_text_source_uses_the_tokenizer_file_of_the_setting",
    "eval.lanes": "launch/commands/test_prepare.py::"
    "test_compute_class_trains_on_prepared_books_in_any_layout",
    "data.key": "engine/data/input_files/test_detect_format.py::test_data_key_selects_the_text",
    "zero.nvme_path": "engine/nvme/test_disk.py::test_the_folder_is_created_and_removed_at_the_end",
    "zero.nvme_buffer": "engine/nvme/test_update_groups.py::"
    "test_every_entry_is_in_one_group_and_no_group_is_too_large",
    "zero.nvme_store": "engine/nvme/test_slot_file.py::"
    "test_the_fallback_of_io_uring_is_libaio_and_then_threads",
    "checkpoint.minutes": "engine/checkpoint/test_saver.py::test_settings_determine_saved_steps",
    "checkpoint.epochs": "engine/checkpoint/test_saver.py::test_settings_determine_saved_steps",
    "checkpoint.best_by": "engine/checkpoint/test_directory.py::"
    "test_the_setting_of_the_latest_checkpoint_selects_the_loss",
    "checkpoint.auto_resume": "engine/runs/test_start_candidates.py::"
    "test_a_config_that_resumes_continues_its_newest_run",
    "checkpoint.keep": "engine/checkpoint/test_saver.py::test_settings_determine_saved_steps",
    "checkpoint.best": "engine/checkpoint/test_saver.py::test_settings_determine_saved_steps",
    "checkpoint.asynchronous": "engine/checkpoint/test_async_save.py::"
    "test_a_failed_save_ends_the_run_and_preserves_the_previous_checkpoint",
    "log.name": "engine/runs/test_run_name.py::test_automatic_name_has_the_main_settings",
    **dict.fromkeys(
        ("log.wandb", "log.wandb_project"),
        "engine/runs/sinks/test_wandb.py::"
        "test_offline_wandb_has_every_curve_the_settings_and_one_id_over_a_resume",
    ),
    "backend": "engine/world/test_distributed.py::test_nccl_without_gpus_is_rejected",
    "timeout": "engine/world/test_distributed.py::"
    "test_timeout_of_the_start_is_replaced_after_the_first_step",
    "start_timeout": "engine/world/test_distributed.py::"
    "test_timeout_of_the_start_is_replaced_after_the_first_step",
}
COMPARED = {"hidden_size", "tensor_shape"}
"""Read by rules, which compare them with other settings; training does not use them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("effects")
    (path / "small.py").write_text(CONFIG)
    (path / "text").write_text(TEXT)
    (path / "other").write_text(OTHER)
    np.save(path / "grey.npy", np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4))
    np.save(path / "levels.npy", np.array([[0.0], [99.0], [255.0]]))
    (path / "held-out").write_text(HELD_OUT)
    return path


@pytest.mark.filterwarnings("ignore:.*is deprecated. Please use:FutureWarning")
@pytest.mark.parametrize("name", EFFECTS)
def test_changed_setting_changes_the_result_of_its_probe(folder: Path, name: str) -> None:
    changes(folder, EFFECTS[name])


@pytest.mark.parametrize("effect", FURTHER_VALUES, ids=[effect.change for effect in FURTHER_VALUES])
def test_further_values_of_a_setting_change_the_result_of_its_probe(
    folder: Path, effect: SettingEffect
) -> None:
    changes(folder, effect)


def changes(folder: Path, effect: SettingEffect) -> None:
    before = effect.probe(folder / "small.py", placed(folder, effect.given))
    after = effect.probe(folder / "small.py", placed(folder, (*effect.given, effect.change)))
    assert before != after


def placed(folder: Path, overrides: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(override.format(folder=folder) for override in overrides)


def test_every_setting_has_a_probe_or_a_test_elsewhere() -> None:
    assert {*EFFECTS, *ELSEWHERE, *COMPARED} == set(all_settings())
    assert not EFFECTS.keys() & ELSEWHERE.keys()


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_tests_named_as_shown_elsewhere_exist(test: str) -> None:
    path, name = test.split("::")
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
