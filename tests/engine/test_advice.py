"""Advice on runs that take too long: each suggestion, taken, ends within the hour."""

from __future__ import annotations

import re
from typing import Any

import pytest

from engine.advice import HOUR, smaller_run
from engine.config.schema import Model, Settings
from engine.flops import flops_per_token


def settings(**changes: Any) -> Settings:
    sizes: dict[str, Any] = {
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "vocab_size": 256,
        "block_size": 1024,
    }
    given = {"batch_size": 8, "seq_len": 1024, "max_steps": 1000}
    model = Model(**sizes, head_dim=64, n_inner=3072)
    return Settings(name="big", source="big.py", model=model, **given | changes)


def taken(run: Settings, advice: str) -> Settings:
    """The settings under the second suggestion."""
    found = dict(re.findall(r"(\S+)=(\d+)", advice.split(", or ")[1]))
    layers = int(found.get("model.n_layer", run.model.n_layer))
    model = run.model.model_copy(update={"n_layer": layers})
    length = int(found.get("SEQ_LEN", run.seq_len))
    return run.model_copy(update={"model": model, "seq_len": length})


def test_an_hour_or_less_needs_none():
    assert smaller_run(settings(), seconds_per_step=3.6, steps_left=1000) is None


@pytest.mark.parametrize("hours", [1.1, 2, 5, 20, 40])
def test_both_suggestions_end_within_the_hour(hours):
    run = settings()
    seconds = hours * HOUR / 1000
    advice = smaller_run(run, seconds, steps_left=1000)
    assert advice is not None
    assert f"{hours:,.1f} hours to go" in advice
    (steps,) = re.findall(r"MAX_STEPS=(\d+)", advice)
    assert 0.9 * HOUR < int(steps) * seconds <= HOUR
    small = taken(run, advice)
    work, whole = (flops_per_token(s.model, s.seq_len) * s.seq_len for s in (small, run))
    share = work / whole
    assert share * hours <= 1
    (minutes,) = re.findall(r"about (\d+) minutes", advice)
    assert float(minutes) == pytest.approx(share * hours * 60, abs=0.51)


def test_where_no_smaller_model_would_do_fewer_steps_are_left():
    advice = smaller_run(settings(), seconds_per_step=0.4 * HOUR, steps_left=1000)
    assert advice is not None
    assert advice.endswith("MAX_STEPS=2")


def test_where_epochs_end_the_run_shorter_samples_are_not_advised():
    """They would be as many more."""
    advice = smaller_run(settings(max_steps=None, num_epochs=2), 30.0, steps_left=1000)
    assert advice is not None
    assert "SEQ_LEN" not in advice


def test_a_pipelines_layers_are_left_alone():
    advice = smaller_run(settings(pipeline=4), 7.0, steps_left=1000)
    assert advice is not None
    assert "n_layer" not in advice


def test_a_step_of_more_than_an_hour_still_gets_one():
    advice = smaller_run(settings(), 2 * HOUR, steps_left=10)
    assert advice is not None
    assert "MAX_STEPS=1" in advice
