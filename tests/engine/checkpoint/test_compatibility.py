"""The differences that are permitted between a checkpoint and the run that resumes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.checkpoint.compatibility import (
    FIXED,
    NOT_REPORTED,
    batch_change,
    check_compatible,
    data_has_changed,
    layout_change,
    mask_change,
    thread_change,
)
from engine.checkpoint.manifest import TrainingState
from engine.checkpoint.save import layout_of
from engine.config.schema import all_settings, user_name
from engine.errors import UserError
from engine.plan import Plan, make_plan
from tests.support.checkpoints import training_at
from tests.support.jobs import TINY


def plan_with(folder: Path, *overrides: str, gpus: int = 4) -> Plan:
    (folder / "tiny.py").write_text(TINY)
    return make_plan(folder / "tiny.py", gpus=gpus, overrides=overrides, environ={})


@pytest.fixture
def before(tmp_path: Path) -> TrainingState:
    settings = plan_with(tmp_path).settings.model_dump(mode="json")
    return training_at(2, corpus="these samples", settings=settings)


def lines(folder: Path, before: TrainingState, *overrides: str, **more: object) -> list[str]:
    corpus = str(more.get("corpus", before.corpus))
    new_data = bool(more.get("new_data"))
    return check_compatible(
        plan_with(folder, *overrides), corpus, before, path="step-00000002", new_data=new_data
    )


def test_an_unchanged_plan_gives_no_lines(tmp_path, before):
    assert lines(tmp_path, before) == []


@pytest.mark.parametrize(
    "override",
    "model.n_layer=4 model.n_embd=32 model.vocab_size=34 model.tie_embeddings=False "
    "model.activation='gelu' optimizer.type='sgd'".split(),
)
def test_another_model_or_optimizer_is_rejected_with_the_difference(tmp_path, before, override):
    with pytest.raises(UserError) as refusal:
        lines(tmp_path, before, override, "optimizer.lr=1.0")
    first, *differences = str(refusal.value).splitlines()
    assert first.startswith("step-00000002 was saved with a different model or optimizer")
    assert any(override in line and "in the checkpoint" in line for line in differences)
    assert not any("optimizer.lr" in line for line in differences)


@pytest.mark.parametrize("name", sorted(FIXED))
def test_a_change_of_each_fixed_setting_is_rejected(tmp_path, before, name):
    *sections, last = name.split(".")
    values = before.settings
    for section in sections:
        values = values[section]
    values[last] = "other"
    with pytest.raises(UserError, match=f"{user_name(name)} is 'other'"):
        lines(tmp_path, before)


def test_all_model_settings_except_training_options_are_fixed():
    free = "embd_pdrop resid_pdrop attn_pdrop checkpoint num_chunks preset".split()
    free += ["init_std", "init_residual", "init_positions"]
    model = {name for name in all_settings() if name.startswith("model.")}
    assert model - FIXED == {f"model.{name}" for name in free}


def test_a_difference_is_reported_with_its_place_and_the_old_value(tmp_path, before):
    with pytest.raises(UserError) as refusal:
        lines(tmp_path, before, "model.n_layer=4")
    where = "command line: model.n_layer=4"
    assert f"  {where}; in the checkpoint model.n_layer is 2" in str(refusal.value).splitlines()


@pytest.mark.parametrize(
    "override",
    "optimizer.lr=0.5 MAX_STEPS=9 BATCH_SIZE=8 clip_grad_norm=1.0 eval.every=3 "
    "lr_scheduler.type='cosine' model.resid_pdrop=0.5 precision='bf16'".split(),
)
def test_a_permitted_change_is_reported(tmp_path, before, override):
    (line,) = lines(tmp_path, before, override)
    assert override in line
    assert "in the checkpoint" in line


@pytest.mark.parametrize(
    "override",
    "log.every=7 timeout=9.0 checkpoint.keep=9 data.cache='x' backend='gloo' zero.stage=1".split(),
)
def test_a_change_without_effect_is_not_reported(tmp_path, before, override):
    assert lines(tmp_path, before, override) == []


def test_another_order_of_samples_needs_allow_new_data(tmp_path, before):
    with pytest.raises(
        UserError, match=r"seed=7; in the checkpoint seed is 42\npass --allow-new-data"
    ):
        lines(tmp_path, before, "seed=7")
    (line,) = lines(tmp_path, before, "seed=7", new_data=True)
    assert "seed=7" in line


def test_other_samples_need_allow_new_data(tmp_path, before):
    for overrides, message in (
        ((), "the data has changed"),
        (
            ("data.validation=0.25",),
            "data.validation=0.25; in the checkpoint data.validation is 0.1",
        ),
        (("eval.lanes=3",), "eval.lanes=3; in the checkpoint eval.lanes is 16"),
    ):
        with pytest.raises(UserError, match=message):
            lines(tmp_path, before, *overrides, corpus="others")
        assert message in lines(tmp_path, before, *overrides, corpus="others", new_data=True)[0]


@pytest.mark.parametrize("override", ["seed=7", "data.validation=0.25", "eval.lanes=3"])
def test_data_of_other_settings_has_not_changed(tmp_path, before, override):
    assert data_has_changed(plan_with(tmp_path), "others", before)
    assert not data_has_changed(plan_with(tmp_path, override), "others", before)


def test_identical_samples_from_other_settings_need_no_option(tmp_path, before):
    assert lines(tmp_path, before, "data.tokenizer='char'") == []


def test_settings_missing_in_a_checkpoint_had_their_defaults(tmp_path, before):
    """They are newer than the checkpoint."""
    del before.settings["eval"], before.settings["model"]["scale_embedding"]
    del before.settings["optimizer"]["betas"]
    assert lines(tmp_path, before, "eval.every=None") == []
    (line,) = lines(tmp_path, before, "eval.every=3")
    assert line.endswith("eval.every=3; in the checkpoint eval.every is None")
    with pytest.raises(UserError, match=r"scale_embedding=True; in .* is False"):
        lines(tmp_path, before, "eval.every=None", "model.scale_embedding=True")


def test_fixed_and_unreported_settings_exist_and_are_disjoint():
    assert {*all_settings(), "name", "source"} >= FIXED | NOT_REPORTED
    assert not FIXED & NOT_REPORTED


def test_another_layout_is_reported(tmp_path):
    layouts = [
        layout_of(plan.settings, plan.layout.data)
        for plan in (plan_with(tmp_path), plan_with(tmp_path, "PIPELINE=2", "zero.stage=1"))
    ]
    assert layout_change(layouts[0], layouts[0]) is None
    message = layout_change(*layouts)
    assert message is not None
    assert "saved with tensor 1 (serial) x pipeline 1 x data 4, resuming with" in message
    assert "pipeline 2 x data 2, ZeRO 1" in message
    assert message.endswith("sample order and dropout masks are identical")
    on_a_gpu = layout_change(*layouts, fused_dropout=True)
    assert on_a_gpu == f"{message}, except the masks of attention, which a GPU's kernel draws"


def test_masks_of_an_older_version_are_reported_if_there_is_dropout(tmp_path):
    plain, dropping = plan_with(tmp_path), plan_with(tmp_path, "model.embd_pdrop=0.1")
    (line,) = mask_change(training_at(2), dropping)
    assert "the next steps draw other masks" in line
    assert mask_change(training_at(2), plain) == []
    assert mask_change(training_at(2, dropout_by="sample"), dropping) == []


@pytest.mark.parametrize(
    ("overrides", "gpus", "message"),
    [
        ((), 4, None),  # 4 ranks x 4 samples
        (("BATCH_SIZE=8",), 2, None),
        ((), 2, "8 samples per step, 16 at the checkpoint; gradient_accumulation=2"),
        (("gradient_accumulation=3",), 1, ", 16 at the checkpoint; gradient_accumulation=4"),
        (("BATCH_SIZE=6",), 4, "24 samples per step, 16 at the checkpoint; BATCH_SIZE=4"),
        ((), 3, ", 16 at the checkpoint; no integer setting restores it"),
    ],
)
def test_another_global_batch_is_reported_with_the_setting_that_restores_it(
    tmp_path, before, overrides, gpus, message
):
    layout = layout_of(plan_with(tmp_path).settings, 4)
    found = batch_change(before, layout, plan_with(tmp_path, *overrides, gpus=gpus))
    assert len(found) == (message is not None)
    assert all(message in line for line in found)
    if found and "no integer" not in found[0]:
        keeps = found[0].partition("checkpoint; ")[2].split()[0]
        kept = plan_with(tmp_path, *overrides, keeps, gpus=gpus)
        assert batch_change(before, layout, kept) == []


def test_another_number_of_threads_is_reported_on_a_cpu_only() -> None:
    then = training_at(2, threads=2, device="cpu")
    line = (
        "1 thread per rank, 2 at the checkpoint: sums round differently; OMP_NUM_THREADS=2 gives "
    )
    assert thread_change(then, "cpu", 1) == [line + "identical bits"]
    assert thread_change(then, "cpu", 2) == []
    assert thread_change(then, "cuda", 1) == []
    assert thread_change(training_at(2, threads=0, device="cpu"), "cpu", 1) == []
