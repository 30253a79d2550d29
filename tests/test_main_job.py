"""The main job, which `./run.sh` starts: over 2d x 4 it reaches the losses of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.programs import by_hand

DEMO = Path(__file__).parents[1] / "gpt_configs" / "demo.py"


ALONE = ("TENSOR_PARALLEL=1", "MODE=serial")


def main_job(output: Path, processes: int, *overrides: str) -> dict[int, dict[str, float]]:
    """Train the demo on ``processes`` processes; return the rows of log.jsonl by step."""
    arguments = [f"--config={DEMO}", f"--output={output}", *overrides]
    left = by_hand(processes, arguments, output.parent)
    assert [rank.code for rank in left] == [0] * processes, left[0].err
    assert "A sample of its text" in left[0].out
    assert json.loads((output / "status.json").read_text())["state"] == "finished"
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows}


def compare(folder: Path, *overrides: str) -> list[float]:
    """Return the validation losses of 2d x 4, each compared with that of one process."""
    alone = main_job(folder / "serial", 1, *ALONE, *overrides)
    cut = main_job(folder / "2d", 4, *overrides)
    losses = {step: row["val_loss"] for step, row in alone.items() if "val_loss" in row}
    assert losses, "no validation"
    for step, loss in losses.items():
        assert cut[step]["val_loss"] == pytest.approx(loss, abs=1e-3)
    return list(losses.values())


def test_main_job_begins_with_the_validation_loss_of_one_process(tmp_path: Path) -> None:
    losses = compare(tmp_path, "MAX_STEPS=8", "BATCH_SIZE=16", "eval.every=4", "eval.batches=1")
    assert losses[-1] < losses[0] < 4.7  # ln(103) = 4.63: it has begun to learn


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_main_job_reaches_the_validation_loss_of_one_process(tmp_path: Path) -> None:
    losses = compare(tmp_path)
    assert losses[-1] < 1.7
