"""The learning rate of a run, from the data that its steps consume."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import UserError
from tests.support.jobs import TINY
from tests.support.runs import open_run


@pytest.mark.parametrize(("batch", "steps"), [(4, 8), (8, 4), (2, 16)])
def test_rate_by_tokens_follows_the_data_and_not_the_steps(
    tmp_path: Path, batch: int, steps: int
) -> None:
    """256 tokens: a warm-up of 64, then a linear decay to the end of the run."""
    (tmp_path / "tiny.py").write_text(TINY)
    overrides = (f"BATCH_SIZE={batch}", f"MAX_STEPS={steps}", "optimizer.lr=0.5")
    schedule = ("lr_scheduler.type=linear", "lr_scheduler.by=token", "lr_scheduler.warmup=64")
    trainer = open_run(0, 1, tmp_path / "tiny.py", (*overrides, *schedule), steps=steps)
    for step in range(1, steps + 1):
        tokens = step * batch * 8
        expected = min(tokens / 64, 1 - (tokens - 64) / (256 - 64))
        assert trainer.lr(step) == pytest.approx(0.5 * expected)


def test_warm_up_in_another_unit_must_end_before_the_decay(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    schedule = "dict(type='cosine', by='token', total=320, warmup=10, warmup_by='step')"
    with pytest.raises(
        UserError, match=r"lr_scheduler.warmup=10 is 320 in units of .* than .*=320"
    ):
        open_run(0, 1, tmp_path / "tiny.py", ("BATCH_SIZE=4", f"lr_scheduler={schedule}"))
