"""cuboid slurm: the script's directives, and its behaviour with stand-ins for Slurm's programs.

They record their arguments and start the command once, on this machine. tests/test_slurm.py runs
the script in a real Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

import train_gpt
from engine.runs.folder import list_runs
from launch.cli import main

CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 8
MAX_STEPS = 4
TENSOR_PARALLEL = 4
MODE = "1d"
model = dict(n_layer=2, n_head=4, n_embd=16, vocab_size=33)
data = dict(type="synthetic")
"""
SRUN = """#!/bin/sh
while [ "$1" != bash ]; do echo "$1" >>srun; shift; done
SLURM_LAUNCH_NODE_IPADDR=127.0.0.1 SLURM_NODEID=0 exec "$@"
"""
RECORDER = """#!/bin/sh
echo "${0##*/} $*" >>calls
cat "${0##*/}-says" && exit 0
echo 'invalid partition' >&2
exit 1
"""
# In place of torchrun: records its arguments.
# If a signal is to come, it has a rank that waits for it.
TORCHRUN = """
import json, os, pathlib, signal, subprocess, sys
blocked = [number.name for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
folder, rank = pathlib.Path("run"), None
if os.path.exists("stops"):
    wait = "import signal; signal.sigwait([signal.SIGUSR1])"
    rank = subprocess.Popen([sys.executable, "-c", wait], start_new_session=True)
    (folder / "checkpoints" / "step-00000002").mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"state": "interrupted"}, indent=2))
pathlib.Path("torchrun.tmp").write_text(json.dumps([sys.argv[1:], blocked, dict(os.environ)]))
os.rename("torchrun.tmp", "torchrun")
if rank is not None:
    rank.wait()
sys.exit(int(os.environ["EXIT"]))
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a config and stand-ins for Slurm's programs and torchrun."""
    programs, modules = tmp_path / "bin", tmp_path / "modules" / "torch" / "distributed"
    programs.mkdir()
    modules.mkdir(parents=True)
    for name, text in (("srun", SRUN), ("scontrol", RECORDER), ("sbatch", RECORDER)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for folder in (modules, modules.parent):
        (folder / "__init__.py").touch()
    (modules / "run.py").write_text(TORCHRUN)
    (tmp_path / "my gpt.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def write(*words: str, config: str = "my gpt.py") -> str:
    assert main(["slurm", config, "--script=job", "--force", *words]) == 0
    return Path("job").read_text()


def directives(script: str) -> dict[str, str]:
    """Return the options of sbatch that a script states."""
    lines = [line[len("#SBATCH --") :] for line in script.splitlines() if line[:7] == "#SBATCH"]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """End of a job: its exit code, and what the stand-ins recorded."""

    code: int
    out: str
    srun: list[str]
    launcher: Any
    """The options of torchrun, parsed by its own parser."""
    rank: Any
    """The arguments of train_gpt.py, parsed by it."""
    blocked: Sequence[str]
    """Signals that are blocked in torchrun."""
    environ: dict[str, str]
    """The environment of torchrun."""
    calls: list[str]
    """The other programs of Slurm that the script called."""


def run_job(*, restarts: int = 0, exits: int = 0, signalled: bool = False) -> Ended:
    """Run the script of a job as slurmd does on the first node."""
    environ = {
        **os.environ,
        "SLURM_JOB_ID": "20007",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_RESTART_COUNT": str(restarts),
        "PYTHONPATH": str(Path("modules").absolute()),
        "EXIT": str(exits),
    }
    for name in ("srun", "torchrun", "calls"):
        Path(name).unlink(missing_ok=True)
    process = subprocess.Popen(["bash", "job"], env=environ, stdout=subprocess.PIPE, text=True)
    if signalled:
        while not Path("torchrun").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate()
    arguments, blocked, seen = json.loads(Path("torchrun").read_text())
    launcher = get_args_parser().parse_args(arguments)
    return Ended(
        code=process.returncode,
        out=out,
        srun=Path("srun").read_text().split(),
        launcher=launcher,
        rank=train_gpt.parse(launcher.training_script_args),
        blocked=blocked,
        environ=seen,
        calls=Path("calls").read_text().splitlines() if Path("calls").exists() else [],
    )


def test_directives_follow_from_plan_and_options(cluster, capsys):
    found = directives(
        write("--nodes=2", "--gpus=16", "--time=1:00:00", "--account=us", "--sbatch=--exclusive")
    )
    assert found["nodes"] == "2"
    assert found["ntasks-per-node"] == "1"
    assert found["gpus-per-node"] == "8"
    assert found["cpus-per-task"] == "32"
    assert found["time"] == "1:00:00"
    assert found["account"] == "us"
    assert found["signal"] == "B:USR1@120"
    assert {"requeue", "exclusive"} <= found.keys()
    assert "partition" not in found
    assert "2 nodes x 8 GPUs" in capsys.readouterr().out


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 4), (2, 2), (3, 4), (8, 1)])
def test_default_number_of_ranks_fills_nodes_with_whole_copies(cluster, nodes, per_node):
    """The model has 4 ranks."""
    script = write(f"--nodes={nodes}", "--cpu", "--cores-per-rank=3")
    assert directives(script)["cpus-per-task"] == str(3 * per_node)
    assert "gpus-per-node" not in directives(script)
    assert f"\nranks_per_node={per_node}\n" in script


def test_job_starts_torchrun_on_each_node_with_one_rendezvous(cluster):
    write("--nodes=2", "--gpus=8", "log.every=7", "--output=run", "--backend=gloo")
    ended = run_job()
    assert ended.code == 0
    assert "--kill-on-bad-exit=1" in ended.srun
    assert "--cpus-per-task=6" in ended.srun
    assert (ended.launcher.nnodes, ended.launcher.nproc_per_node) == ("2", "4")
    assert (ended.launcher.rdzv_backend, ended.launcher.rdzv_id) == ("c10d", "20007")
    assert ended.launcher.rdzv_endpoint == "127.0.0.1:12007"
    assert ended.launcher.rdzv_conf == "is_host=1"
    assert Path(ended.launcher.training_script).samefile(train_gpt.__file__)
    assert ended.rank.config == Path("my gpt.py")
    assert ended.rank.words == ["log.every=7"]
    assert (str(ended.rank.output), ended.rank.resume, ended.rank.backend) == (
        "run",
        "auto",
        "gloo",
    )
    assert ended.calls == []


def test_run_folder_is_listed_as_a_run_and_belongs_to_the_job(cluster):
    write("--nodes=1")
    output = run_job().rank.output
    output.mkdir(parents=True)
    assert [folder.path for folder in list_runs(name="my gpt")] == [output]
    assert output.name.endswith("-20007")
    assert run_job(restarts=1).rank.output == output


def test_signal_before_the_time_limit_requeues_a_job_that_has_saved(cluster):
    write("--nodes=1", "--output=run")
    Path("stops").touch()
    Path("scontrol-says").touch()
    ended = run_job(signalled=True)
    assert (ended.code, ended.calls) == (0, ["scontrol requeue 20007"])
    assert "SIGUSR1" in ended.blocked
    assert "saved before the time limit" in ended.out

    Path("stops").unlink()
    (Path("run") / "status.json").write_text('{\n  "state": "finished"\n}')
    again = run_job(restarts=1)
    assert (again.rank.resume, again.rank.config, again.rank.output) == ("run", None, None)
    assert again.calls == []


def test_requeued_job_without_a_checkpoint_starts_with_its_config(cluster):
    write("--nodes=1", "--output=run")
    (Path("run") / "checkpoints" / "step-00000002.tmp").mkdir(parents=True)
    assert run_job(restarts=1).rank.config == Path("my gpt.py")


def test_failed_run_is_not_requeued_and_gives_its_exit_code(cluster):
    write("--nodes=1", "--output=run")
    ended = run_job(exits=3)
    assert (ended.code, ended.calls) == (3, [])


def test_network_variables_and_setup_commands_precede_torchrun(cluster, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0,eth 1")
    write("--nodes=1", "--setup", 'export SEEN="$NCCL_SOCKET_IFNAME"', "--setup", "touch prepared")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    ended = run_job()
    assert ended.environ["NCCL_SOCKET_IFNAME"] == "ib0,eth 1"
    assert ended.environ["SEEN"] == "ib0,eth 1"
    assert Path("prepared").exists()


def test_submit_passes_the_script_to_sbatch_and_prints_its_answer(cluster, capsys):
    Path("sbatch-says").write_text("Submitted batch job 20007\n")
    assert main(["slurm", "my gpt.py", "--nodes=2", "--submit"]) == 0
    assert capsys.readouterr().out.endswith("Submitted batch job 20007\n")
    assert Path("calls").read_text() == "sbatch my gpt.sbatch\n"


def test_rejected_submission_exits_with_1(cluster, capsys):
    assert main(["slurm", "my gpt.py", "--nodes=2", "--submit"]) == 1
    assert "invalid partition" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes=2", "--gpus=7"], "not a multiple of --nodes 2; nearest: 6, 8"),
        (["--nodes=3", "--gpus=6"], "TENSOR_PARALLEL"),
        (["--nodes=2", "--submit"], "--submit needs sbatch"),
        (["--nodes=2", "--output=old"], "--resume old continues it"),
        (["--nodes=2"], "replace it with --force"),
    ],
)
def test_invalid_requests_are_rejected_and_nothing_is_written(
    cluster, monkeypatch, capsys, words, message
):
    Path("old").mkdir()
    Path("old", "status.json").write_text('{"state": "interrupted"}')
    Path("my gpt.sbatch").write_text("mine")
    assert main(["slurm", "my gpt.py", *words], {"PATH": ""}) == 2
    assert message in capsys.readouterr().err
    assert Path("my gpt.sbatch").read_text() == "mine"
