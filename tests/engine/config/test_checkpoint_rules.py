"""Notes about the settings of checkpoints."""

from pathlib import Path

import pytest

from engine.plan import make_plan

BASE = "BATCH_SIZE = 8\nSEQ_LEN = 64\nMAX_STEPS = 9\nmodel = dict(n_layer=4, n_head=4, n_embd=64)\n"
NO_EFFECT = (
    "has no effect with checkpoint.every=None, checkpoint.epochs=None, checkpoint.minutes=None; it "
    "needs checkpoint.every, checkpoint.epochs or checkpoint.minutes"
)
NEVER_BEST = (
    "checkpoint.every=4 is not a multiple of eval.every=3: a checkpoint saved without a validation "
    "cannot be the best; nearest: 3, 6"
)
NO_VALIDATION = (
    "checkpoint.best=True has no effect with checkpoint.every=4, checkpoint.epochs=None, "
    "checkpoint.minutes=None, eval.every=None, eval.epochs=None, data.validation=0.1; it needs "
    "checkpoint.every, checkpoint.epochs or checkpoint.minutes, and validations by eval.every or "
    "eval.epochs"
)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("checkpoint = dict(every=5)", None),
        ("checkpoint = dict(minutes=5.0, asynchronous=True)", None),
        ("checkpoint = dict(every=6)\neval = dict(every=3)", None),
        ("checkpoint = dict(every=4)\neval = dict(every=3)", NEVER_BEST),
        ("checkpoint = dict(every=4, best=False)\neval = dict(every=3)", None),
        ("checkpoint = dict(epochs=0.3)\neval = dict(epochs=0.1)", None),
        (
            "checkpoint = dict(epochs=0.5)\neval = dict(epochs=1.0)",
            "checkpoint.epochs=0.5 is not a multiple of eval.epochs=1.0: a checkpoint saved "
            "without a validation cannot be the best",
        ),
        ("checkpoint = dict(every=4, best=True, best_by='train')", None),
        ("checkpoint = dict(keep=4)", f"checkpoint.keep=4 {NO_EFFECT}"),
        ("checkpoint = dict(every=4, best=True)", NO_VALIDATION),
    ],
)
def test_checkpoint_settings_are_noted(tmp_path: Path, text: str, note: str | None) -> None:
    path = tmp_path / "config.py"
    path.write_text(BASE + text)
    plan = make_plan(path, gpus=2, environ={})
    assert plan.warnings == ()
    assert [line.partition(": ")[2] for line in plan.notes] == ([note] if note else [])
