"""Hints for unknown names lead to the intended setting from any section."""

from __future__ import annotations

from typing import Any

import pytest

from engine.config.aliases import ALIASES
from engine.config.fields import takes
from engine.config.language.limits import Budget
from engine.config.name_hints import assignment, closest, fold, known, unknown_setting
from engine.config.other_trainers import EXPLAINED, SYNONYMS
from engine.config.overrides import parse
from engine.config.schema import all_settings, user_name
from engine.config.value_hints import closest_spelling
from models.presets import PRESETS

OWN = {user_name(name): field for name, field in all_settings().items()}
# Settings whose name outside of their section is better known as another's.
OTHERS_FIRST = {
    "model.block_size": "SEQ_LEN",
    "zero.depth": "DEPTH",
    "eval.epochs": "NUM_EPOCHS",
    "checkpoint.epochs": "NUM_EPOCHS",
    "eval.split": "data.validation",
}
SECTIONS = {name.rpartition(".")[0] for name in OWN}


@pytest.mark.parametrize("target", SYNONYMS)
def test_synonym_stands_for_a_setting_that_accepts_its_value(target: str) -> None:
    name, equals, _ = target.partition("=")
    assert name in OWN or name in SECTIONS or name in ALIASES
    if equals:
        field, problems = OWN[name], list[Any]()
        ((_, value),) = parse([target], Budget(), problems.append).items()
        assert problems == []
        assert takes(field, value)


def test_name_of_another_trainer_stands_for_a_single_setting() -> None:
    names = [
        fold(name)
        for table in (SYNONYMS, EXPLAINED)
        for each in table.values()
        for name in each.split()
    ]
    assert sorted(names) == sorted({*names})
    assert not {*names} & {fold(name) for name in (*OWN, *ALIASES)}


@pytest.mark.parametrize("name", OWN)
def test_setting_in_the_wrong_section_is_recognised(name: str) -> None:
    last = name.rpartition(".")[2]
    for written in (last, last.upper(), last.replace("_", "-")):
        assert {name, OTHERS_FIRST.get(name)} & {*known(f"gizmo.{written}").settings}


@pytest.mark.parametrize(
    "name",
    ["grad_clip", "GRAD_CLIP", "grad-clip", "gradClip", "optimizer.grad_clip", "trainer.Grad_Clip"],
)
def test_case_dashes_and_sections_are_ignored(name: str) -> None:
    assert known(name).settings == ("clip_grad_norm",)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("weigth_decay", ("optimizer.weight_decay",)),
        ("learning_rates", ("optimizer.lr",)),
        ("NUM_EPOCH", ("NUM_EPOCHS",)),
        ("optimizer.beta", ("optimizer.betas",)),
        ("model.n_heads_", ("model.n_head",)),
        ("zero.every", ("eval.every", "log.every", "checkpoint.every")),
        ("qwerty", ()),
    ],
)
def test_misspelt_name_gives_the_closest_setting(name: str, settings: tuple[str, ...]) -> None:
    assert closest(name).settings == settings


def test_message_shows_the_assignment_in_a_file() -> None:
    hint = known("n_layer")
    assert unknown_setting("n_layer", hint) == (
        "n_layer is not a setting; did you mean model.n_layer, as in model = dict(n_layer=...)?"
    )
    assert unknown_setting("n_layer", hint, in_file=False) == (
        "n_layer is not a setting; did you mean model.n_layer?"
    )
    assert assignment("zero.model_config.shard_strategy") == (
        "zero = dict(model_config=dict(shard_strategy=...))"
    )


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("gpt2_smal", "gpt2_small"),
        ("GPT2-Small", "gpt2_small"),
        ("gpt2_meduim", "gpt2_medium"),
        ("gpt_nano", "gpt-nano"),
        *(
            (word, None)
            for word in ("gpt3_350M", "gpt3_small", "gpt2_9B", "gpt2_xxl", "gpt4", "opt")
        ),
    ],
)
def test_preset_of_another_size_is_not_suggested(word: str, meant: str | None) -> None:
    assert closest_spelling(word, PRESETS) == meant


def test_different_number_is_not_a_misspelling() -> None:
    assert closest_spelling("gpt_3500M", ["gpt_350M"]) is None


@pytest.mark.parametrize("name", PRESETS)
def test_misspelt_preset_suggests_the_same_size(name: str) -> None:
    def sizes(preset: str) -> tuple[int, int, int]:
        return PRESETS[preset].n_layer, PRESETS[preset].n_head, PRESETS[preset].n_embd

    for place in range(len(name)):
        typo = name[:place] + name[place + 1 :]
        meant = closest_spelling(typo, PRESETS)
        assert typo in PRESETS or meant is None or sizes(meant) == sizes(name), typo
