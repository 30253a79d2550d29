"""The script of `cuboid slurm` in a real Slurm with two nodes on this machine."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cli import main
from tests.support.jobs import TINY
from tests.support.slurm_cluster import SlurmCluster, is_installed, slurm_cluster

STEPS = 1_000_000
"""More than the test waits for: the test stops the job."""


def losses(log: Path) -> list[float]:
    """Return the loss of each step of a log, of which the last line may be incomplete."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [json.loads(line)["loss"] for line in lines]


def wait(cluster: SlurmCluster, job: str, condition: Callable[[], bool], folder: Path) -> None:
    """Wait for a condition while the job is in the queue."""
    while not condition():
        state = cluster.job(job)["JobState"]
        output = "".join(path.read_text() for path in folder.glob("slurm-*.out"))
        assert state in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), f"{state}: {output}"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="needs root and the packages slurm-wlm and munge")
def test_job_that_is_preempted_and_reaches_its_limit_trains_like_one_process(
    tmp_path, monkeypatch, capsys
):
    """Preemption sends SIGTERM to the ranks, the time limit SIGUSR1; the job saves, is requeued and
    resumes after both, and its losses are those of one uninterrupted process. There are no other
    checkpoints than those of the two signals."""
    work, run = tmp_path / "work", tmp_path / "work" / "run"
    work.mkdir()
    (tmp_path / "cluster").mkdir()
    monkeypatch.chdir(work)
    Path("tiny.py").write_text(TINY)
    with slurm_cluster(tmp_path / "cluster") as cluster:
        words = ["tiny.py", "--nodes=2", "--cpu", "--partition=low", "--output=run", "--submit"]
        settings = [f"MAX_STEPS={STEPS}", "checkpoint.every=None"]
        assert main(["slurm", *words, *settings], cluster.environ) == 0
        answer = re.search(r"Submitted batch job (\d+)", capsys.readouterr().out)
        assert answer is not None
        job = answer[1]

        def steps() -> int:
            return len(losses(run / "log.jsonl"))

        def output() -> str:
            return Path(f"slurm-{job}.out").read_text()

        wait(cluster, job, lambda: steps() > 5, work)
        cluster.command("sbatch", "--partition=high", "--nodes=2", "--wrap=srun true")
        wait(cluster, job, lambda: output().count("resuming from") == 1, work)
        saved = int(re.findall(r"resuming from \S*step-(\d+)", output())[0])
        wait(cluster, job, lambda: steps() > saved + 5, work)
        cluster.command("scancel", "--batch", "--signal=USR1", job)
        wait(cluster, job, lambda: output().count("resuming from") == 2, work)
        assert "stopped by SIGUSR1" in output()
        assert "saved before the time limit" in output()
        saved = int(re.findall(r"resuming from \S*step-(\d+)", output())[1])
        wait(cluster, job, lambda: steps() > saved + 5, work)
        assert cluster.job(job)["Restarts"] == "2"
        cluster.command("scancel", job)
        while cluster.job(job)["JobState"] != "CANCELLED":
            time.sleep(0.2)
    trained = losses(run / "log.jsonl")
    alone = ["train", "tiny.py", f"MAX_STEPS={len(trained)}", "--gpus=1", "BATCH_SIZE=8"]
    assert main([*alone, "--output=alone", "checkpoint.every=None"]) == 0
    assert trained == pytest.approx(losses(work / "alone" / "log.jsonl"), rel=1e-4)
