"""Resumes with another step size: tokens, epochs and learning rates continue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.load import SavedCheckpoint
from engine.runs.start_candidates import StartOptions
from tests.support.checkpoints import reseal
from tests.support.jobs import RUN, TINY, Job, checkpoints_of, run, run_all, without_sample

SEQ, EPOCHS, PEAK, FORK = 8, 3, 0.01, 7
TEXT = "the cat sat on the mat; " * 7  # 168 tokens: 20 samples of 8, 10 of 16
OVERRIDES = (
    *("data.type=text", "data.tokenizer=char", "data.path=corpus.txt", "data.cache=cache"),
    *("data.validation=0", "model.block_size=16", "MAX_STEPS=None", f"NUM_EPOCHS={EPOCHS}"),
    *("lr_scheduler.type=linear", "lr_scheduler.by=epoch", f"checkpoint.every={FORK}"),
)


def job(folder: Path, *overrides: str, **more: Any) -> Job:
    options = StartOptions(
        output=Path(more.pop("output", RUN)),
        resume=more.pop("resume", "none"),
        new_data=more.pop("new_data", False),
    )
    overrides = (*OVERRIDES, *overrides)
    return Job(folder=folder, overrides=overrides, options=options, planted=without_sample, **more)


def rows(folder: Path, run: str) -> dict[int, dict[str, Any]]:
    lines = (folder / run / "log.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


# Overrides, samples a step, tokens a sample, samples an epoch, changed text
AFTER: dict[str, tuple[tuple[str, ...], int, int, int, str]] = {
    "same": ((), 4, SEQ, 20, TEXT),
    "batch": (("BATCH_SIZE=7",), 7, SEQ, 20, TEXT),
    "rounds": (("BATCH_SIZE=1", "gradient_accumulation=3"), 3, SEQ, 20, TEXT),
    "length": (("SEQ_LEN=16",), 4, 16, 10, TEXT),
    "data": ((), 4, SEQ, 41, TEXT * 2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, and runs that resumed its step 7 with other settings."""
    path = tmp_path_factory.mktemp("history")
    (path / "tiny.py").write_text(TINY)
    (path / "corpus.txt").write_text(TEXT)
    (path / "twice.txt").write_text(TEXT * 2)
    resume = "run/checkpoints/step-00000007"
    jobs = [job(path)]
    for name, (overrides, *_, text) in AFTER.items():
        more = ("data.path=twice.txt",) if text != TEXT else ()
        jobs.append(job(path, *overrides, *more, resume=resume, output=name, new_data=True))
    for (ended,) in run_all(jobs):
        assert ended.error == "", ended.err
        (path / f"reported-{len(list(path.glob('reported-*')))}").write_text(ended.out)
    return path


@pytest.mark.parametrize("name", AFTER)
def test_a_resume_continues_tokens_epochs_and_learning_rates(folder: Path, name: str) -> None:
    """Compare with a sum over the individual steps."""
    _, batch, length, samples, _ = AFTER[name]
    found = rows(folder, name)
    epochs, tokens, expected = FORK * 4 / 20, FORK * 4 * SEQ, {}
    for step in found:
        tokens += batch * length
        epochs += batch / samples
        expected[step] = (tokens, PEAK * max(0.0, 1 - epochs / EPOCHS))
    assert list(found) == list(range(FORK + 1, FORK + 1 + len(found)))
    last = epochs - batch / samples
    assert last < EPOCHS - 1 / samples < epochs, "one whole sample may be lost to rounding"
    for step, row in found.items():
        assert row["tokens"] == expected[step][0], step
        assert row["lr"] == pytest.approx(expected[step][1], abs=0.5 * PEAK / samples), step
    training = SavedCheckpoint(checkpoints_of(folder, Path(name)).folder(max(found))).training
    assert training.tokens == tokens
    assert training.epochs == pytest.approx(epochs, abs=0.5 / samples)


def test_a_resume_without_changes_equals_the_uninterrupted_run(folder: Path) -> None:
    whole, again = rows(folder, str(RUN)), rows(folder, "same")
    assert whole.keys() - again.keys() == set(range(1, FORK + 1))
    for step, row in again.items():
        assert all(row[key] == whole[step][key] for key in ("loss", "lr", "tokens", "grad_norm"))


def test_other_samples_in_the_rest_of_an_epoch_are_reported(folder: Path) -> None:
    line = "1.40 epochs were read of other samples: 60% of an epoch of the present samples follows"
    reported = [
        line in (folder / f"reported-{number}").read_text() for number in range(1 + len(AFTER))
    ]
    assert reported == [False] + [name in ("length", "data") for name in AFTER]


def test_tokens_and_epochs_missing_in_a_checkpoint_follow_from_its_settings(folder: Path) -> None:
    """Older checkpoints record neither tokens nor epochs."""
    checkpoint = checkpoints_of(folder).folder(FORK)
    file = checkpoint / "training.json"
    content = json.loads(file.read_text())
    assert content.pop("tokens") == FORK * 4 * SEQ
    assert content.pop("epochs") == pytest.approx(FORK * 4 / 20)
    file.write_text(json.dumps(content))
    reseal(checkpoint)
    (ended,) = run(job(folder, resume=str(checkpoint), output="older"))
    assert ended.error == "", ended.err
    whole, again = rows(folder, str(RUN)), rows(folder, "older")
    assert min(again) == FORK + 1
    for step, row in again.items():
        assert all(row[key] == whole[step][key] for key in ("loss", "lr", "tokens"))
