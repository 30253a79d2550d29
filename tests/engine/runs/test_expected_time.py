"""Advice on runs that take too long: each suggested run ends within minutes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from engine.config.schema import Settings
from engine.config.sections.model import ModelSettings
from engine.estimate.flops import flops_per_token
from engine.runs.expected_time import GUESSED_RATE, HOUR, MINUTES, guessed_seconds, smaller_run


def settings(**changes: Any) -> Settings:
    sizes: dict[str, Any] = {
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "vocab_size": 256,
        "block_size": 1024,
    }
    given = {"batch_size": 8, "seq_len": 1024, "max_steps": 1000}
    model = ModelSettings(**sizes, head_dim=64, n_inner=3072)
    return Settings(name="big", source="big.py", model=model, **given | changes)


def taken(run: Settings, advice: str) -> tuple[Settings, int | None]:
    """Return the settings of the second suggestion, and its steps if it has any."""
    found = dict(re.findall(r"(\S+)=(\d+)", advice.split(", or a smaller model: ")[1]))
    layers = int(found.get("model.n_layer", run.model.n_layer))
    model = run.model.model_copy(update={"n_layer": layers})
    length = int(found.get("SEQ_LEN", run.seq_len))
    steps = int(found["MAX_STEPS"]) if "MAX_STEPS" in found else None
    return run.model_copy(update={"model": model, "seq_len": length}), steps


def test_a_run_of_at_most_an_hour_gets_no_advice():
    assert smaller_run(settings(), seconds_per_step=3.6, steps_left=1000) is None


@pytest.mark.parametrize("hours", [1.1, 2, 5, 20, 40, 24 * 7])
def test_both_suggested_runs_end_within_minutes(hours):
    run = settings()
    seconds = hours * HOUR / 1000
    advice = smaller_run(run, seconds, steps_left=1000)
    assert advice is not None
    assert (f"about {hours:,.1f} hours left" if hours < 48 else "about 7.0 days left") in advice
    few = int(re.findall(r"MAX_STEPS=(\d+)", advice)[0])
    assert few * seconds <= 60 * MINUTES < (few + 1) * seconds or few == 1
    small, steps = taken(run, advice)
    work, whole = (flops_per_token(s.model, s.seq_len) * s.seq_len for s in (small, run))
    left = seconds * work / whole * (steps or 1000)
    assert left <= 60 * MINUTES * 1.01
    assert steps is None or left > 60 * MINUTES / 2, "and uses them"


def test_an_estimated_time_is_marked_as_a_guess():
    run = settings()
    tokens = run.batch_size * run.seq_len
    seconds = guessed_seconds(run, tokens, cores=2)
    assert seconds == flops_per_token(run.model, run.seq_len) * tokens / 2 / GUESSED_RATE
    advice = smaller_run(run, seconds, 1000, guessed=True)
    assert advice is not None
    assert "(a guess from FLOPs until steps are measured)" in advice
    assert "guess" not in (smaller_run(run, seconds, 1000) or "")


def test_shorter_samples_are_not_advised_for_a_run_of_epochs():
    """An epoch would have more samples."""
    advice = smaller_run(settings(max_steps=None, num_epochs=2), 30.0, steps_left=1000)
    assert advice is not None
    assert "SEQ_LEN" not in advice


def test_fewer_layers_are_not_advised_for_a_pipeline():
    advice = smaller_run(settings(pipeline=4), 7.0, steps_left=1000)
    assert advice is not None
    assert "n_layer" not in advice


def test_run_with_steps_of_more_than_an_hour_is_advised_a_single_step():
    advice = smaller_run(settings(), 2 * HOUR, steps_left=10)
    assert advice is not None
    assert "MAX_STEPS=1" in advice
