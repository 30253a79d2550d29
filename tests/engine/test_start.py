"""The starting point of a run: checkpoint, folder, and the cases that are rejected."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from engine.checkpoint.dcp_metadata import METADATA
from engine.checkpoint.load import SavedCheckpoint
from engine.data.batches.loader import load_batches
from engine.errors import UserError
from engine.plan import make_plan
from engine.runs.folder import RunFolder
from engine.runs.start_candidates import StartOptions
from engine.training.matmuls import MATMULS
from engine.training.trainer import Trainer
from engine.world.world import World
from tests.support.checkpoints import parameters_of, reseal
from tests.support.jobs import RUN, TINY, Ended, Job, checkpoints_of, digest, run, run_all


def job(folder: Path, *overrides: str, resume: str = "none", **more: Any) -> Job:
    options = StartOptions(
        resume=resume, output=more.pop("output", RUN), new_data=more.pop("new_data", False)
    )
    return Job(folder=folder, overrides=overrides, options=options, **more)


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("begin")
    (folder / "tiny.py").write_text(TINY)
    (ended,) = run(job(folder, "MAX_STEPS=6"))
    assert ended.error == ""
    return folder


@pytest.fixture
def folder(six_steps: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to resume."""
    return Path(shutil.copytree(six_steps, tmp_path / "copy"))


def rows(folder: Path, run: Path = RUN) -> list[int]:
    return [
        json.loads(line)["step"] for line in (folder / run / "log.jsonl").read_text().splitlines()
    ]


def flip_a_bit(folder: Path, name: str = "__0_0.distcp") -> None:
    shard = folder / name
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def same(one: SavedCheckpoint, other: SavedCheckpoint) -> bool:
    ours, theirs = parameters_of(one), parameters_of(other)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def test_the_newest_intact_checkpoint_is_resumed_and_corrupt_ones_are_reported_and_archived(
    folder, six_steps
):
    flip_a_bit(checkpoints_of(folder).folder(6))
    checkpoints_of(folder).temporary(8).mkdir()  # of a save that died
    damaged = checkpoints_of(folder).folder(4)
    (damaged / METADATA).write_bytes(pickle.dumps(Bomb()))
    reseal(damaged)
    (ended,) = run(job(folder, "MAX_STEPS=6", resume="auto"))
    assert ended.error == ""
    damages = [
        "__0_0.distcp was changed: its SHA-256 differs",
        ".metadata names posix.system, which DCP metadata never contains",
    ]
    assert ended.out.splitlines()[1:4] == [
        f"skipping corrupt checkpoint run/checkpoints/step-00000006: {damages[0]}",
        f"skipping corrupt checkpoint run/checkpoints/step-00000004: {damages[1]}",
        "resuming from run/checkpoints/step-00000002",
    ]
    assert not (folder / "canary").exists()
    assert [path.name for path in checkpoints_of(folder).leftovers()] == [
        "step-00000004.aside",
        "step-00000006.aside",
    ]
    assert rows(folder) == [1, 2, 3, 4, 5, 6]
    assert same(
        SavedCheckpoint(checkpoints_of(folder).folder(6)),
        SavedCheckpoint(checkpoints_of(six_steps).folder(6)),
    )


def test_a_problem_found_by_one_rank_counts_for_all(folder):
    """The corrupt file is in the share of rank 1."""
    both = ("MAX_STEPS=8", "checkpoint.every=1")
    assert [one.error for one in run(job(folder, *both, resume="auto"), 2)] == ["", ""]
    flip_a_bit(checkpoints_of(folder).folder(8), "__1_0.distcp")
    ended = run(job(folder, *both, resume="auto"), 2)
    assert [one.error for one in ended] == ["", ""]
    assert ended[0].out.splitlines()[:2] == [
        "skipping corrupt checkpoint run/checkpoints/step-00000008: __1_0.distcp was changed: its "
        "SHA-256 differs",
        "resuming from run/checkpoints/step-00000007",
    ]
    assert [list(one.batches) for one in ended] == [[8], [8]]


def test_a_finished_run_has_nothing_left_to_train(folder):
    before = (folder / RUN / "log.jsonl").read_text()
    auto, named = run_all([job(folder, "MAX_STEPS=6", resume=resume) for resume in ("auto", "run")])
    assert (auto[0].error, auto[0].batches) == ("", {})
    finished = (
        "run is finished at step 6: MAX_STEPS=N, with N above 6, trains it further; "
        "--init-from run starts a new run with its weights\n"
    )
    moved, outcome, *_ = auto[0].out.splitlines(keepends=True)
    assert re.fullmatch(r"run is a run of .*/tiny.py; it continues with .*/tiny.py\n", moved)
    assert outcome == finished
    assert (named[0].error, named[0].err) == ("UserError", finished)
    assert (folder / RUN / "log.jsonl").read_text() == before
    assert checkpoints_of(folder).steps() == [2, 4, 6]
    assert RunFolder(folder / RUN).read_status()["state"] == "finished"
    assert RunFolder(folder / RUN).read_status()["step"] == 6


def test_fewer_steps_than_trained_are_rejected_without_changes(folder):
    before = snapshot(folder)
    (ended,) = run(job(folder, "MAX_STEPS=4", resume="run"))
    assert ended.err.startswith("run is finished at step 6: MAX_STEPS=N, with N above 6, trains")
    assert snapshot(folder) == before


def test_an_older_checkpoint_is_resumed_into_another_output(folder):
    older = "run/checkpoints/step-00000004"
    fork, back = run_all(
        [
            job(folder, "MAX_STEPS=5", resume=older, output=Path("fork")),
            job(folder, "MAX_STEPS=5", resume=older, output=None),
        ]
    )
    assert [fork[0].error, back[0].error] == ["", ""]
    assert checkpoints_of(folder, Path("fork")).steps() == [5]
    assert rows(folder, Path("fork")) == [5]
    assert checkpoints_of(folder).steps() == [2, 4, 5]
    assert rows(folder) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("resume", ["auto", "run", "run/checkpoints/step-00000002"])
def test_another_architecture_is_rejected_without_changes(folder, resume):
    before = snapshot(folder)
    (ended,) = run(job(folder, "MAX_STEPS=9", "model.n_layer=4", resume=resume))
    assert ended.error == "UserError"
    first, second, remedy = ended.err.splitlines()
    assert remedy == "restore them, or begin a new run with --resume none"
    assert first.endswith(
        "was saved with a different model or optimizer and cannot be resumed with this config:"
    )
    assert second == "  command line: model.n_layer=4; in the checkpoint model.n_layer is 2"
    assert snapshot(folder) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the content of all files but the lock file."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): path.read_bytes() for path in paths}


def test_other_data_is_resumed_only_with_allow_new_data(folder):
    refused, allowed = run_all(
        [
            job(folder, "seed=7", "MAX_STEPS=7", resume="auto"),
            job(folder, "seed=7", "MAX_STEPS=7", resume="auto", new_data=True),
        ]
    )
    assert refused[0].error == "UserError"
    assert refused[0].err.splitlines()[-1] == "pass --allow-new-data to resume anyway"
    assert allowed[0].error == ""
    assert list(allowed[0].batches) == [7]


def test_a_permitted_change_is_reported_and_used(folder):
    (ended,) = run(job(folder, "optimizer.lr=0.5", "MAX_STEPS=8", resume="auto"))
    assert "command line: optimizer.lr=0.5; in the checkpoint optimizer.lr is 0.01" in ended.out
    last = json.loads((folder / RUN / "log.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["lr"]) == (8, 0.5)


def test_a_world_of_another_size_continues_with_the_next_samples(folder):
    """Twice the ranks read twice the samples per step; none is skipped or repeated."""
    ended = run(job(folder, "MAX_STEPS=8", resume="auto"), 2)
    assert [one.error for one in ended] == ["", ""]
    assert "saved with tensor 1 (serial) x pipeline 1 x data 1, resuming with" in ended[0].out
    read = [digest for step in (7, 8) for one in ended for digest in one.batches[step]]
    assert read == [digest_of(folder, step) for step in (7, 8, 9, 10)]
    stored = SavedCheckpoint(checkpoints_of(folder).folder(8))
    assert stored.training.samples == (6 + 4) * 4
    last = json.loads((folder / RUN / "log.jsonl").read_text().splitlines()[-1])
    assert last["tokens"] == (6 + 4) * 4 * 8


def digest_of(folder: Path, step: int) -> str:
    """Return the digest of the batch that one process would read in a step."""
    settings = make_plan(folder / "tiny.py", gpus=1, environ={}).settings
    return digest(load_batches(settings, data_size=1, cache=folder).batch(step, 0, 0))


def test_a_folder_in_use_is_rejected_and_unchanged(folder):
    before = snapshot(folder)
    with RunFolder(folder / RUN).lock():
        refused = [run(job(folder, "MAX_STEPS=7", resume=resume))[0] for resume in ("auto", "run")]
    assert [one.error for one in refused] == ["UserError", "UserError"]
    assert all("run is in use by process" in one.err for one in refused)
    assert snapshot(folder) == before
    assert run(job(folder, "MAX_STEPS=7", resume="run"))[0].error == ""


@contextlib.contextmanager
def trying_to_lock_during_training(world: World) -> Iterator[None]:
    """Try to lock the run's folder during training."""
    healthy = Trainer.step

    def step(self: Trainer, step: int, **more: Any) -> Any:
        with pytest.raises(UserError, match="run is in use by process"):
            RunFolder(RUN).lock()
        return healthy(self, step, **more)

    with patch.object(Trainer, "step", step):
        yield


def test_a_training_run_locks_its_folder(folder):
    (again,) = run(job(folder, "MAX_STEPS=7", resume="run", planted=trying_to_lock_during_training))
    assert (again.error, list(again.batches)) == ("", [7])
    shutil.rmtree(folder / RUN)
    (anew,) = run(job(folder, "MAX_STEPS=1", planted=trying_to_lock_during_training))
    assert (anew.error, list(anew.batches)) == ("", [1])


def test_the_lock_is_released_at_the_end_of_the_process(folder):
    assert run(job(folder, "MAX_STEPS=9", "checkpoint.every=1", resume="run", dies=8)) == []
    assert checkpoints_of(folder).steps()[-1] == 7
    assert RunFolder(folder / RUN).read_status()["state"] == "failed", "settled by this look"
    (ended,) = run(job(folder, "MAX_STEPS=9", "checkpoint.every=1", resume="run"))
    assert list(ended.batches) == [8, 9]


def test_a_restarted_launch_resumes_in_its_folder(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    mine: dict[str, Any] = {"launch": "job-1", "output": None}
    assert run(job(tmp_path, "checkpoint.every=3", **mine, dies=2)) == []  # before any checkpoint
    assert run(job(tmp_path, "MAX_STEPS=6", **mine, dies=5)) == []
    other = job(tmp_path, "MAX_STEPS=2", launch="job-2", output=None)
    (tmp_path / "tiny.py").write_text(TINY.replace("lr=0.01", "lr=0.5"))
    again = job(tmp_path, "MAX_STEPS=6", **mine)
    ended = [of_ranks[0] for of_ranks in run_all([other, again])]
    assert [one.error for one in ended] == ["", ""]
    assert list(ended[1].batches) == [4, 5, 6], "recorded, and not said again: checkpoint.every=3"
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert ended[1].out.startswith("tiny.py or the environment has changed since the run began")
    (mine_again,) = [path for path in (tmp_path / "runs").iterdir() if len(losses(path)) == 6]
    assert {rate for _, rate in losses(mine_again)} == {0.01}, "the config as it was"
    assert (mine_again / "config.py").read_text() == TINY


def losses(run: Path) -> list[tuple[float, float]]:
    """Return loss and learning rate of each step."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["loss"], row["lr"]) for row in rows]


def test_a_restarted_launch_does_not_read_the_config_again(tmp_path):
    """Either of the two ranks would read a changed config."""
    (tmp_path / "tiny.py").write_text(TINY)
    mine: dict[str, Any] = {"launch": "job-1", "output": None}
    assert run(job(tmp_path, **mine, dies=3), 2) == []
    (tmp_path / "tiny.py").write_text("BATCH_SIZE = ")
    ended = run(job(tmp_path, **mine), 2)
    assert [(one.error, list(one.batches)) for one in ended] == [("", [3, 4])] * 2


def test_resume_auto_without_a_run_starts_a_new_run(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    first, second = run_all([job(tmp_path, resume="auto", output=None)] * 2)
    assert list(first[0].batches) == [1, 2, 3, 4]
    assert second[0].batches == {}
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_resume_without_an_intact_checkpoint_is_rejected(folder):
    for step in (2, 4, 6):
        flip_a_bit(checkpoints_of(folder).folder(step))
    refused, finished = run_all(
        [job(folder, "MAX_STEPS=7", resume=resume) for resume in ("run", "auto")]
    )
    assert refused[0].error == "UserError"
    assert refused[0].err == (
        "--resume=run: no intact checkpoint found; name another run or checkpoint, or begin a new "
        "run with --resume none\n"
    )
    assert finished[0].err == (
        "run contains a finished run and has no checkpoint to resume from; "
        "choose another --output\n"
    )
    assert checkpoints_of(folder).steps() == [2, 4, 6]


@contextlib.contextmanager
def slow_onednn(world: World) -> Iterator[None]:
    with patch("engine.train.choose_run_matmul", lambda world: "torch"):
        yield


def test_a_resume_uses_the_matmul_library_of_the_checkpoint(folder):
    """The other library is faster on the present processor."""
    for step in (2, 4, 6):
        path = checkpoints_of(folder).folder(step) / "training.json"
        path.write_text(path.read_text().replace('"matmul": "torch"', '"matmul": "onednn"'))
        reseal(path.parent)
    assert "onednn" in MATMULS
    same, other = run_all(
        [
            job(folder, "MAX_STEPS=7", resume="auto", planted=slow_onednn),
            job(folder, "MAX_STEPS=8", "precision='bf16'", resume="auto", planted=slow_onednn),
        ]
    )
    assert [same[0].error, other[0].error] == ["", ""]
    machine = [
        SavedCheckpoint(checkpoints_of(folder).folder(step)).training.matmul for step in (7, 8)
    ]
    assert machine == ["onednn", "torch"]


@contextlib.contextmanager
def other_data(world: World) -> Iterator[None]:
    """Give rank 1 other samples under the same path."""

    def loaded(settings: Any, **more: Any) -> Any:
        batches = load_batches(settings, **more)
        if world.rank == 1:
            object.__setattr__(batches.corpus, "fingerprint", "another")
        return batches

    with patch("engine.open_data.load_batches", loaded):
        yield


def test_ranks_with_different_data_are_rejected(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    ended: list[Ended] = run(job(tmp_path, planted=other_data), 2)
    assert [one.error for one in ended] == ["UserError", "UserError"]
    assert "".join(one.err for one in ended) == "rank 1 reads other data than rank 0\n"
    assert not (tmp_path / RUN).exists()
