"""A run that is killed repeatedly, at exact points and at random steps, and resumed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.runs.folder import RunFolder
from engine.runs.start_candidates import StartOptions
from tests.support.checkpoints import everything
from tests.support.jobs import TINY, Job, run_all
from tests.support.worlds import WorldError

ROOT = Path(__file__).parents[2]
RANKS, EVERY = 2, 3
BEFORE_RENAME = ["kill-save", "kill-verify", "kill-rename"]
AFTER_RENAME = ["kill-named", "kill-prune"]
SMALL = (
    *("TENSOR_PARALLEL=2", "MODE=1d", "precision=float64", "model.resid_pdrop=0.1"),
    *(f"checkpoint.every={EVERY}", "checkpoint.keep=2"),
)


@dataclass
class Campaign:
    """A run of ``steps`` in ``folder``. ``lost``: repeated steps, by kill."""

    folder: Path
    steps: int
    seed: int = 0
    lost: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "tiny.py").write_text(TINY)
        self.draw = random.Random(self.seed)
        self.run = RunFolder(self.folder / "run")
        self.checkpoints = CheckpointDirectory(self.run.checkpoints)

    @property
    def latest(self) -> int:
        """Step of the latest checkpoint; 0 before the first."""
        return max(self.checkpoints.steps(), default=0)

    def job(self, *overrides: str, fault: str = "") -> Job:
        return Job(
            folder=self.folder,
            overrides=(*SMALL, f"MAX_STEPS={self.steps}", *overrides),
            options=StartOptions(resume="auto", output=Path("run")),
            fault=fault,
        )

    def finish(self) -> None:
        for ended in run_all([self.job()], RANKS)[0]:
            assert ended.error == "", ended.err
        assert self.run.read_status()["state"] == "finished"

    def fault(self, kind: str) -> tuple[str, int]:
        """Return a fault of this kind in one of the next steps, and the step of the latest
        checkpoint after it."""
        done, rank = self.latest, self.draw.randrange(RANKS)
        saves = done + EVERY * self.draw.randint(1, 2)
        if kind in BEFORE_RENAME:  # rank 0 renames
            rank = 0 if kind == "kill-rename" else rank
            return f"{kind}:{rank}:{saves}", saves - EVERY
        if kind in AFTER_RENAME:
            # a checkpoint must exist that can be pruned
            saves = max(saves, 3 * EVERY) if kind == "kill-prune" else saves
            return f"{kind}:0:{saves}", saves
        step = done + self.draw.randint(1, 2 * EVERY)
        return f"{kind}:{rank}:{step}", (step - 1) // EVERY * EVERY

    def kill_a_rank(self, kind: str, *overrides: str, exact: bool = True) -> None:
        """Run until a rank is killed, and check the checkpoints. ``exact``: checkpoints are
        synchronous."""
        before, (fault, expected) = self.latest, self.fault(kind)
        victim, step = map(int, fault.split(":")[1:])
        with pytest.raises(WorldError) as caught:
            run_all([self.job(*overrides, fault=fault)], RANKS)
        assert caught.value.failures == {victim: "died without a word"}, fault
        assert self.latest == expected if exact else before <= self.latest <= step, fault
        self.lost.append(step - self.latest)
        self.check()

    def kill_torchrun(self) -> None:
        """Run two ranks under torchrun, which restarts them twice, and kill torchrun at a random
        step."""
        kinds = ["kill", *BEFORE_RENAME]
        faults, expected = [], self.latest
        for _ in range(2):
            rank, step = self.draw.randrange(RANKS), expected + self.draw.randint(1, EVERY)
            kind = self.draw.choice(kinds) if step % EVERY == 0 else "kill"
            faults.append(f"{kind}:{0 if kind == 'kill-rename' else rank}:{step}")
            self.lost.append(step - expected)
        process = self._torchrun(",".join(faults))
        target = expected + self.draw.randint(1, 4 * EVERY)
        while self.step < target or not self._is_in_third_attempt(process):
            assert process.poll() is None
            time.sleep(0.01)
        descendants = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        gone, alive = psutil.wait_procs(descendants, timeout=600)
        assert len(gone) >= RANKS
        assert not alive, "ranks outlive torchrun"
        assert self.latest >= expected
        self.lost.append(max(0, self.step - self.latest))
        self.check()

    def _is_in_third_attempt(self, process: subprocess.Popen[str]) -> bool:
        """Return whether the run has resumed in torchrun's third attempt."""
        pid = self.run.read_status().get("pid")
        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children():
                if child.pid == pid:
                    return child.environ().get("TORCHELASTIC_RESTART_COUNT") == "2"
        return False

    def _torchrun(self, fault: str) -> subprocess.Popen[str]:
        job = self.job()
        environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        environ |= {"XDG_CACHE_HOME": str(self.folder), "TMPDIR": str(self.folder), "FAULT": fault}
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *(f"--nproc_per_node={RANKS}", "--max_restarts=2", str(ROOT / "train_gpt.py")),
                *("--config", "tiny.py", *job.overrides, "--resume", "auto", "--output", "run"),
            ],
            cwd=self.folder,
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the log, without an incomplete one."""
        rows = []
        for line in self.run.log.read_text().splitlines() if self.run.log.exists() else []:
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    @property
    def step(self) -> int:
        """Last step in the log."""
        rows = self.rows()
        return int(rows[-1]["step"]) if rows else 0

    def check(self) -> None:
        """Check that every folder with the name of a checkpoint verifies."""
        for step in self.checkpoints.steps():
            assert SavedCheckpoint(self.checkpoints.folder(step)).verify() == [], step


def same_end(one: Campaign, other: Campaign) -> None:
    """Check that weights, optimizer, RNG and log are equal to the bit."""
    assert one.run.weights.read_bytes() == other.run.weights.read_bytes()
    ours, theirs = (
        SavedCheckpoint(campaign.checkpoints.folder(campaign.steps)) for campaign in (one, other)
    )
    actual, expected = everything(ours), everything(theirs)
    assert actual.keys() == expected.keys()
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []
    aside: dict[str, object] = {"settings": {}}  # settings of saving may differ
    assert ours.training.model_copy(update=aside) == theirs.training.model_copy(update=aside)
    logs = [
        [(row["step"], row["loss"], row["grad_norm"], row["tokens"]) for row in campaign.rows()]
        for campaign in (one, other)
    ]
    assert logs[0] == logs[1]
    assert [step for step, *_ in logs[0]] == list(range(1, one.steps + 1))
