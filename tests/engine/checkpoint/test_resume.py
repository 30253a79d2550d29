"""A run that was killed and resumed ends with the bits of an uninterrupted run."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy
import pytest
import torch

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.manifest import LossScaleState
from engine.runs.start_candidates import StartOptions
from engine.training.trainer import Trainer
from engine.world.world import World
from models.parallel.registry import modes
from tests.support.checkpoints import everything
from tests.support.jobs import TINY, Ended, Job, run, run_all
from tests.support.mode_sizes import ModeSize, full_mode_sizes

SAVED, DIES, STEPS = 2, 4, 4  # killed in the middle of step 4, after step 3 was logged
DROPOUT = ("model.embd_pdrop=0.1", "model.resid_pdrop=0.1", "model.attn_pdrop=0.1")
OFFLOADED, BESIDE = "zero.offload='cpu'", "checkpoint.asynchronous=True"
PP = ("PIPELINE=2", "NUM_MICRO_BATCHES=2", *DROPOUT)


def cases() -> dict[str, tuple[int, tuple[str, ...]]]:
    """Return ranks and overrides by name: each mode, and each feature that has a state."""
    found: dict[str, tuple[int, tuple[str, ...]]] = {}
    pair = ModeSize("2.5d", 2, 2)  # its grids are sharded as in 2d
    for cut in (pair if size.mode == "2.5d" else size for size in full_mode_sizes()):
        depth = (f"DEPTH={cut.depth}",) if cut.depth > 1 else ()
        layout = (f"MODE='{cut.mode}'", f"TENSOR_PARALLEL={cut.tensor}", *depth)
        sample = ("BATCH_SIZE=1",) if modes()[cut.mode].inner.tokens else ()  # on several ranks
        found[cut.mode] = cut.tensor, (*(layout if cut.tensor > 1 else ()), *sample, *DROPOUT)
    found["pp zero1"] = 4, (*PP, "zero.stage=1", OFFLOADED)
    found["1d zero2"] = 4, ("MODE='1d'", "TENSOR_PARALLEL=2", "zero.stage=2", *DROPOUT)
    found["pp zero3"] = 4, (*PP, "zero.stage=3", BESIDE)
    overflows = ("loss_scale.initial=1e9", "loss_scale.backoff_factor=1e-4")
    fp16 = ("precision='fp16'", *overflows, "loss_scale.growth_interval=2")
    grows = ("loss_scale.growth_interval=1", "loss_scale.growth_factor=1e6")
    borne = ("precision='fp16'", *grows, "loss_scale.hysteresis=2", "loss_scale.initial=1024.0")
    sgd = ("optimizer.type='sgd'", "optimizer.momentum=0.9", "gradient_accumulation=2")
    nvme = ("zero.stage=3", "zero.offload='nvme'", "zero.offload_params='nvme'")
    return {
        **found,
        "fp16": (1, fp16),
        "fp16, overflowing": (1, borne),
        "sgd, accumulated": (1, sgd),
        "offloaded, asynchronous": (2, ("zero.stage=3", OFFLOADED, BESIDE, *DROPOUT)),
        "nvme": (2, (*nvme, "zero.nvme_path='nvme'", "zero.nvme_store='threads'")),
    }


CASES = cases()


@contextlib.contextmanager
def drawing(world: World) -> Iterator[None]:
    """Draw from all global generators in each step, as a library might: on each rank more often."""
    healthy = Trainer.step

    def step(self: Trainer, step: int, **more: Any) -> Any:
        for _ in range(world.rank + 1):
            torch.rand(1), numpy.random.rand(), random.random()
        return healthy(self, step, **more)

    with patch.object(Trainer, "step", step):
        yield


def job(folder: Path, case: str, **more: Any) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.py").write_text(TINY)
    (folder / "nvme").mkdir(exist_ok=True)
    overrides = (f"MAX_STEPS={STEPS}", f"checkpoint.every={SAVED}", *CASES[case][1])
    return Job(folder=folder, overrides=overrides, planted=drawing, **more)


class ResumeWorlds:
    """Kills each case in its own world; then one world per size resumes all of its cases to the end
    and runs them without an interruption."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished = cache(self._finished)

    def _finished(self, ranks: int) -> dict[str, tuple[list[Ended], list[Ended]]]:
        names = [name for name, (size, _) in CASES.items() if size == ranks]
        jobs = []
        for name in names:
            killed = job(self.path / name / "killed", name, dies=DIES, dies_saved=True)
            assert run(killed, ranks) == []
            jobs.append(job(killed.folder, name, options=StartOptions(resume="auto")))
            jobs.append(job(self.path / name / "straight", name))
        ended = run_all(jobs, ranks)
        return dict(zip(names, zip(ended[::2], ended[1::2], strict=True), strict=True))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> ResumeWorlds:
    return ResumeWorlds(tmp_path_factory.mktemp("resume"))


def only_run(folder: Path) -> Path:
    (found,) = (folder / "runs").iterdir()
    return found


def losses(run: Path) -> list[Any]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"], row["tokens"]) for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_a_resume_in_the_same_layout_gives_the_same_bits(worlds: ResumeWorlds, case: str) -> None:
    resumed, straight = worlds.finished(CASES[case][0])[case]
    assert [ended.error for ended in resumed + straight] == [""] * len(resumed + straight)
    runs = [only_run(worlds.path / case / name) for name in ("killed", "straight")]
    for step in (SAVED, STEPS):
        ours, theirs = (
            SavedCheckpoint(CheckpointDirectory(run / "checkpoints").folder(step)) for run in runs
        )
        expected, found = everything(theirs), everything(ours)
        assert found.keys() == expected.keys()
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []
        assert {f"rng.{rank}" for rank in range(len(resumed))} <= found.keys()
        assert any(name.startswith("optimizer.") for name in found)
        assert ours.training == theirs.training
    assert losses(runs[0]) == losses(runs[1])
    assert [step for step, *_ in losses(runs[0])] == list(range(1, STEPS + 1))
    for after, never in zip(resumed, straight, strict=True):
        assert after.batches == {s: b for s, b in never.batches.items() if s > SAVED}


def scales(worlds: ResumeWorlds, case: str) -> list[LossScaleState]:
    """Return the state of the loss scale in each checkpoint."""
    worlds.finished(1)
    folder = only_run(worlds.path / case / "straight") / "checkpoints"
    found = [
        SavedCheckpoint(CheckpointDirectory(folder).folder(step)).training.loss_scale
        for step in (SAVED, STEPS)
    ]
    assert None not in found
    return [state for state in found if state]


def test_the_loss_scale_changes_in_the_fp16_runs(worlds: ResumeWorlds) -> None:
    saved, last = scales(worlds, "fp16")
    assert saved != last
    assert (saved.skipped, saved.steps_since_overflow, saved.consecutive_overflows) == (1, 1, 0)
    saved, last = scales(worlds, "fp16, overflowing")
    assert (saved.skipped, saved.consecutive_overflows) == (1, 1)
    assert (last.skipped, last.scale) == (3, saved.scale / 2), "one more was borne"
