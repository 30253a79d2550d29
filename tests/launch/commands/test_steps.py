"""cuboid steps, compared with the published numbers of Languini's compute classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.plan import make_plan
from launch import cli

CONFIGS = Path(__file__).parents[3] / "gpt_configs"
SMALL, MEDIUM = 55_416, 16_618  # tokens per second


@pytest.mark.parametrize(
    ("hours", "rate", "batch", "tokens", "steps"),
    [
        (6, SMALL, 128, "1,196,985,600", 18265),
        (12, SMALL, 128, "2,393,971,200", 36529),
        (24, SMALL, 256, "4,787,942,400", 36529),
        (48, MEDIUM, 256, "2,871,590,400", 21908),
        (96, MEDIUM, 256, "5,743,180,800", 43817),
    ],
)
def test_steps_of_a_compute_class_are_the_published_ones_and_those_of_its_config(
    capsys, hours, rate, batch, tokens, steps
):
    words = f"steps --hours {hours} --tokens-per-second {rate} --batch {batch} --seq 512"
    assert cli.main(words.split()) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"MAX_STEPS={steps}"
    assert second.startswith(f"{tokens} tokens in {hours} hours")
    assert f" are {steps * batch * 512:,}: {hours} hours" in third
    plan = make_plan(CONFIGS / f"languini_{hours}h.py", gpus=1, environ={})
    assert words in plan.config.text
    assert plan.settings.max_steps == plan.settings.lr_scheduler.total == steps
    assert (plan.global_batch, plan.settings.seq_len) == (batch, 512)


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf", "six"])
def test_hours_must_be_a_number_above_zero(capsys, hours):
    words = ["steps", f"--hours={hours}", "--tokens-per-second=9", "--batch=1", "--seq=1"]
    assert cli.main(words) == 2
    assert f"{hours} is not a number above 0" in capsys.readouterr().err
