"""Loss spikes: their detection, the limit of consecutive ones, unchanged weights, and a resume
with the same window of losses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch

from engine.checkpoint.load import SavedCheckpoint
from engine.config.sections.loss import LossSpikeSettings
from engine.runs.start_candidates import StartOptions
from engine.training.loss_spikes import LossSpikes, SpikeVerdict
from tests.support.checkpoints import parameters_of
from tests.support.jobs import TINY, Job, run, run_all
from tests.support.runs import open_run
from tests.support.setting_effects import CONFIG


def spikes(window: int = 3, max_skips: int = 2, factor: float | None = 2.0) -> LossSpikes:
    return LossSpikes(LossSpikeSettings(factor=factor, window=window, max_skips=max_skips))


def test_a_loss_over_the_limit_is_a_spike() -> None:
    judge, losses = spikes(), [9.0, 1.0, 2.0, 4.0, 3.9, 5.0, 8.1, 4.1]
    kept: list[float] = []
    for loss in losses:
        expected = len(kept) >= 3 and loss > 2 * median(kept[-3:])
        assert judge.update(loss).skip is expected
        if not expected:
            kept.append(loss)
    assert judge.skipped == len(losses) - len(kept) == 1
    assert judge.recent == kept[-3:]


def test_the_verdict_states_the_reason_in_numbers() -> None:
    judge = spikes()
    for loss in (1.0, 2.0, 3.0):
        assert judge.update(loss) == SpikeVerdict(skip=False)
    reason = "loss 4.5000 is over 2 x 2.0000, the median of the last 3 losses"
    assert judge.update(4.5) == SpikeVerdict(skip=True, reason=reason)


def test_too_many_consecutive_spikes_exhaust_the_limit() -> None:
    judge = spikes()
    for loss in (1.0, 1.0, 1.0, 5.0, 5.0, 1.0, 5.0, 5.0):
        judge.update(loss)
        assert not judge.exhausted
    assert (judge.consecutive_skips, judge.skipped) == (2, 4)
    judge.update(5.0)
    assert judge.exhausted


def test_an_overflow_is_not_a_spike(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(CONFIG)
    precision = ("precision=fp16", "loss_scale.initial=1e9")
    overrides = (*precision, "loss_spike=dict(factor=1.5, window=9)")
    run = open_run(0, 1, tmp_path / "small.py", overrides, steps=9)
    kept = [outcome.loss for outcome in map(run.step, range(1, 10)) if not outcome.skipped]
    assert run.stepper.loss_scale is not None
    assert run.stepper.spikes is not None
    assert 0 < run.stepper.loss_scale.skipped == 9 - len(kept)
    assert (run.stepper.spikes.recent, run.stepper.spikes.skipped) == (kept, 0)


JUMPS = ("MAX_STEPS=8", "checkpoint.every=1", "checkpoint.keep=9")
SKIPS = (*JUMPS, "loss_spike=dict(factor=1.5, window=3)")


def job(folder: Path, *overrides: str, fault: str = "spike:1:5", resume: str = "none") -> Job:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.py").write_text(TINY)
    options = StartOptions(resume=resume, output=Path("run"))
    return Job(folder=folder, overrides=overrides, options=options, fault=fault)


def stored(job: Job, step: int) -> SavedCheckpoint:
    return SavedCheckpoint(job.folder / "run" / "checkpoints" / f"step-{step:08}")


def weights(job: Job, step: int) -> dict[str, torch.Tensor]:
    return parameters_of(stored(job, step))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Train on two ranks, with a loss spike of one rank in step 5."""
    root = tmp_path_factory.mktemp("spikes")
    made = {"skips": job(root / "skips", *SKIPS), "learns": job(root / "learns", *JUMPS)}
    for of_ranks in run_all([*made.values()], 2):
        assert [one.error for one in of_ranks] == ["", ""]
    return made


def test_the_step_of_a_spike_leaves_the_weights_unchanged(jobs: dict[str, Job]) -> None:
    skips, learns = jobs["skips"], jobs["learns"]
    assert same(weights(skips, 4), weights(learns, 4))
    assert same(weights(skips, 4), weights(skips, 5))
    assert not same(weights(learns, 4), weights(learns, 5))
    rows = [json.loads(line) for line in (skips.folder / "run/log.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [0] * 4 + [1] * 4
    assert [row["step"] for row in rows if "remark" in row] == [5]
    assert rows[4]["remark"].startswith("skipped: loss ")
    assert "skipped" not in (learns.folder / "run/log.jsonl").read_text()


def test_a_resume_restores_the_losses_of_the_window(jobs: dict[str, Job], tmp_path: Path) -> None:
    """The run is killed right after the spike; without the checkpoint its window is empty."""
    assert run(replace(job(tmp_path / "killed", *SKIPS), dies=6), 2) == []
    again = job(tmp_path / "killed", *SKIPS, resume="auto", fault="spike:0:7")
    ended = run(again, 2)
    assert [one.error for one in ended] == ["", ""]
    states = [stored(again, step).training.loss_spikes for step in (5, 6, 7)]
    assert [state.skipped for state in states if state] == [1, 1, 2]
    at_6 = stored(jobs["skips"], 6).training.loss_spikes
    assert stored(again, 6).training.loss_spikes == at_6
    assert same(weights(again, 6), weights(jobs["skips"], 6))
