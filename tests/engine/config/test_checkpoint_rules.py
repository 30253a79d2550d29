"""What a config is told of its checkpoints."""

from pathlib import Path

import pytest

from engine.plan import make_plan

BASE = "BATCH_SIZE = 8\nSEQ_LEN = 64\nMAX_STEPS = 9\nmodel = dict(n_layer=4, n_head=4, n_embd=64)\n"
NO_EFFECT = "has no effect: that takes checkpoint.every or checkpoint.minutes"
NEVER_BEST = (
    "checkpoint.every=4 is not a multiple of eval.every=3: checkpoints without a validation are "
    "never the best"
)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("checkpoint = dict(every=5)", None),
        ("checkpoint = dict(minutes=5.0, asynchronous=True)", None),
        ("checkpoint = dict(every=6)\neval = dict(every=3)", None),
        ("checkpoint = dict(every=4)\neval = dict(every=3)", NEVER_BEST),
        ("checkpoint = dict(every=4, best=False)\neval = dict(every=3)", None),
        ("checkpoint = dict(keep=4)", f"checkpoint.keep=4 {NO_EFFECT}"),
        (
            "checkpoint = dict(every=4, best=True)",
            f"checkpoint.best=True {NO_EFFECT}, and validations by eval.every",
        ),
    ],
)
def test_told(tmp_path: Path, text: str, note: str | None) -> None:
    path = tmp_path / "config.py"
    path.write_text(BASE + text)
    found = make_plan(path, gpus=2, environ={})
    assert found.warnings == ()
    assert [line.partition(": ")[2] for line in found.notes] == ([note] if note else [])
