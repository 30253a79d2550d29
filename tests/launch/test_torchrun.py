"""Ranks under a real torchrun: output, exit codes, restarts, no process left running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from engine.errors import UserError
from launch.torchrun import command, exit_code, ranks_to_start
from tests.support.programs import Start, run_ranks
from tests.support.worlds import free_port

ROOT = Path(__file__).parents[2]
CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 8
MAX_STEPS = 2
TENSOR_PARALLEL = 2
MODE = "1d"
model = dict(n_layer=2, n_head=4, n_embd=16, vocab_size=32)
data = dict(type="synthetic")
log = dict(tensorboard=False)
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TOO_LARGE = ["TENSOR_PARALLEL=4", "MODE=2d"]
NOHUP = ["sh", "-c", 'trap "" HUP; exec "$@"', "nohup"]
LAUNCHER = """
import sys
from launch.torchrun import run
sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a program in an empty folder; kill its processes at the end."""
    started: list[psutil.Process] = []
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environ |= {"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}

    def run(*arguments: object, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            cwd=tmp_path,
            env={**environ, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(psutil.Process(process.pid))
        return process

    yield run
    for process in started:
        if process.is_running():
            for child in [*process.children(recursive=True), process]:
                child.kill()


def launch(ranks: int, *arguments: object) -> list[object]:
    return [sys.executable, "-c", LAUNCHER, ranks, *arguments]


def wait_for_steps(
    folder: Path, process: subprocess.Popen[str], more: int = 0
) -> list[psutil.Process]:
    """Wait until the run has done some steps, and return its processes."""
    log = folder / "log.jsonl"
    least = log.read_text().count("\n") + more if more else 2
    while not (log.exists() and log.read_text().count("\n") >= least):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow  # test_restarted_run_resumes_from_the_last_checkpoint ends in the same way
def test_finished_run_exits_with_0(
    config: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    arguments = ["--config", config, "--output", tmp_path / "run"]
    process = start(*launch(2, *arguments))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "step 2/2" in out
    assert err == ""
    assert_no_folder_left(tmp_path)


def assert_no_folder_left(folder: Path) -> None:
    left = [*folder.glob("torchelastic_*"), *folder.glob("cuboid-*")]
    assert not left, "a folder of the launcher was left behind"


def test_user_error_is_one_line_and_exit_code_2(
    config: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start(*launch(2, "--config", config, *TOO_LARGE))
    out, err = process.communicate()
    assert process.returncode == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "2 GPUs are not a multiple of 4" in err


@pytest.mark.slow  # the ranks print as in the test above
def test_user_error_under_plain_torchrun_is_printed_once(
    config: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    script = ROOT / "train_gpt.py"
    arguments = ["--from_torch", "--config", config, *TOO_LARGE]
    process = start(*TORCHRUN, "--nproc_per_node=2", script, *arguments)
    _, err = process.communicate()
    assert process.returncode == 1, "torchrun's own"
    assert err.count("2 GPUs are not a multiple of 4") == 1
    ours = err[: err.index("ChildFailedError")]
    assert "train_gpt.py" not in ours, "a rank's traceback"


@pytest.mark.slow  # exit code and stderr of ranks are passed on as in the test above
def test_unknown_option_of_a_rank_is_one_line_and_exit_code_2(
    config: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start(*launch(2, "--config", config, "--colour"))
    _, err = process.communicate()
    assert process.returncode == 2
    assert err == "train_gpt.py: --colour is not an option; train_gpt.py --help lists them\n"


def by_a_queue(process: subprocess.Popen[str]) -> str:
    """Signal the launcher repeatedly, as a queue does before the time limit; some of the signals
    arrive while the ranks save."""
    process.send_signal(signal.SIGUSR1)
    for _ in range(15):
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    return "SIGUSR1"


def ctrl_c(process: subprocess.Popen[str]) -> str:
    """Send SIGINT to all processes, as a terminal does; torchrun forwards it to the ranks again."""
    os.killpg(process.pid, signal.SIGINT)
    return "SIGINT"


def one_rank(process: subprocess.Popen[str]) -> str:
    """Signal one rank, as a queue signals the processes of a job step, but not the launcher."""
    ranks = psutil.Process(process.pid).children(recursive=True)
    next(p for p in ranks if p.environ().get("RANK") == "1").send_signal(signal.SIGUSR2)
    return "SIGUSR2"


@pytest.mark.parametrize(
    "stop", [by_a_queue, ctrl_c, pytest.param(one_rank, marks=pytest.mark.slow)]
)
def test_signal_saves_and_ends_the_run(
    config: Path,
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[str]],
    stop: Callable[[subprocess.Popen[str]], str],
) -> None:
    """Under ``nohup`` the run ignores SIGHUP."""
    folder = tmp_path / "run"
    arguments = ["--config", config, "MAX_STEPS=100000", "--output", folder]
    process = start(*NOHUP, *launch(2, *arguments, "checkpoint.every=100000"))
    family = wait_for_steps(folder, process)
    os.killpg(process.pid, signal.SIGHUP)
    wait_for_steps(folder, process, more=5)
    name = stop(process)
    out, err = process.communicate()
    assert process.returncode == 1
    assert err == ""
    assert (folder / "model.safetensors").exists()
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert status["message"] == f"stopped by {name} after step {status['step']} of 100000"
    saved = folder / "checkpoints" / f"step-{status['step']:08}"
    assert out.count(f"saved {saved} in") == 1
    assert list(saved.parent.iterdir()) == [saved]
    assert f"\n{status['message']}\n" in out
    assert not any(member.is_running() for member in family)


@pytest.mark.slow  # test_restarted_run_resumes_from_the_last_checkpoint kills rank 1
def test_killed_rank_is_named(
    config: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "run"
    arguments = ["--config", config, "MAX_STEPS=100000", "--output", folder]
    process = start(*launch(2, *arguments))
    victim = next(p for p in wait_for_steps(folder, process) if p.environ().get("RANK") == "0")
    victim.kill()
    _, err = process.communicate()
    assert process.returncode == 1
    expected = (
        rf"step \d+: rank 0 \(process {victim.pid} on .*\) is dead: killed, or out of memory\n"
    )
    assert re.fullmatch(expected, err), err
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["message"]) == ("failed", err.rstrip())


def test_ranks_exit_when_the_launcher_is_killed(
    config: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """The ranks save a checkpoint before they exit."""
    folder = tmp_path / "run"
    arguments = ["--config", config, "MAX_STEPS=100000", "--output", folder]
    process = start(*launch(2, *arguments))
    family = wait_for_steps(folder, process)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(family)
    assert len(gone) >= 2
    assert not alive
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["message"].split()[:3]) == (
        "interrupted",
        "stopped by SIGTERM".split(),
    )
    assert (folder / "model.safetensors").exists()


RESTARTS = [
    pytest.param({}, id="torchrun's store shared"),
    pytest.param(
        {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}, id="not shared", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("environ", RESTARTS)
def test_restarted_ranks_use_a_new_store(
    config: Path, start: Callable[..., subprocess.Popen[str]], environ: dict[str, str]
) -> None:
    script = ROOT / "tests" / "support" / "failing_rank.py"
    options = ["--nproc_per_node=2", "--max_restarts=1"]
    process = start(*TORCHRUN, *options, script, config, 1, **environ)
    out, err = process.communicate()
    assert process.returncode == 0, err
    attempts, runs = zip(*(line.split(", run ") for line in out.splitlines()), strict=True)
    assert attempts == tuple(f"attempt {number}: 2 ranks" for number in range(2))
    assert len(set(runs)) == 1, "a restarted run must find its folder"
    assert err.count("on purpose") == 1


CUBOID = [sys.executable, "-m", "launch.cli", "train", "--gpus=2"]


KILLED = {"kill:1:4": "step 4: rank 1 is dead: killed, or out of memory"}
SUSPENDED = {"stop:1:7": "step 7: rank 1 is suspended (SIGSTOP) and did not respond within 30 s"}


@pytest.mark.parametrize(
    ("launcher", "faults"),
    [
        pytest.param([*CUBOID, "--max-restarts=1"], KILLED, id="cuboid"),
        pytest.param(
            [*CUBOID, "--max-restarts=2"],
            KILLED | SUSPENDED,
            id="cuboid, twice",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [*TORCHRUN, "--nproc_per_node=2", "--max_restarts=2", ROOT / "train_gpt.py"],
            KILLED | SUSPENDED,
            id="torchrun",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_restarted_run_resumes_from_the_last_checkpoint(
    config: Path,
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[str]],
    launcher: list[object],
    faults: dict[str, str],
) -> None:
    """The run continues in its own folder whatever --resume states. The other ranks report both a
    killed and a suspended rank."""
    more = ["MAX_STEPS=9", "checkpoint.every=2", "--resume", "none", "timeout=30"]
    process = start(*launcher, "--config", config, *more, FAULT=",".join(faults))
    out, err = process.communicate()
    assert process.returncode == 0, err
    lines = [line for line in err.splitlines() if line.startswith("step ")]
    assert [re.sub(r" \(process \d+ on .*?\)", "", line) for line in lines] == [*faults.values()]
    (folder,) = (tmp_path / "runs").iterdir()
    found = [line for line in out.splitlines() if line.startswith("resuming from")]
    path = folder.relative_to(tmp_path) / "checkpoints"
    assert found == [f"resuming from {path}/step-0000000{step}" for step in (2, 6)[: len(faults)]]
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert "step 9/9" in out
    if launcher[: len(CUBOID)] == CUBOID:
        assert_no_folder_left(tmp_path)


def by_hand(rank: int, port: int) -> Start:
    place = [f"--rank={rank}", "--world_size=2", "--host=127.0.0.1", f"--port={port}"]
    return Start(arguments=place)


def slurm(rank: int, port: int) -> Start:
    environ = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(rank)}
    environ |= {"SLURM_NODELIST": "n[1-2]", "SLURM_JOB_ID": str(port), "SLURM_STEP_ID": "0"}
    return Start(arguments=["--host=127.0.0.1", f"--port={port}"], environ=environ)


def open_mpi(rank: int, port: int) -> Start:
    environ = {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2"}
    environ |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_PORT": str(port)}
    return Start(arguments=[], environ=environ)


@pytest.mark.parametrize("style", [by_hand, slurm, open_mpi])
def test_ranks_of_other_launchers_train(
    config: Path, tmp_path: Path, style: Callable[[int, int], Start]
) -> None:
    run = ["--config", str(config), "--output", str(tmp_path / "run")]
    with free_port() as port:
        places = [style(rank, port) for rank in range(2)]
        starts = [replace(place, arguments=[*run, *place.arguments]) for place in places]
        ranks = run_ranks(starts, tmp_path)
    assert [rank.code for rank in ranks] == [0, 0], [rank.err for rank in ranks]
    assert "step 2/2" in ranks[0].out
    assert ranks[1].out == ""


# Without processes


@pytest.mark.parametrize(
    ("model_ranks", "gpus", "asked", "expected"),
    [(4, 0, None, 4), (1, 1, None, 1), (2, 7, None, 6), (4, 8, None, 8), (4, 1, 4, 4)],
)
def test_ranks_fill_the_gpus_unless_a_number_is_requested(
    model_ranks: int, gpus: int, asked: int | None, expected: int
) -> None:
    assert ranks_to_start(model_ranks, gpus, asked) == expected


def test_too_few_gpus_are_rejected() -> None:
    with pytest.raises(UserError, match="needs 4 GPUs, but this machine has 2; --gpus 4 lets"):
        ranks_to_start(4, 2)


def test_torchrun_command_has_ranks_restarts_signals_and_logs() -> None:
    signals = [signal.SIGTERM, signal.SIGUSR1]
    given = ["--config", "a.py"]
    arguments = command(4, given, logs=Path("logs"), signals=signals, restarts=2)
    assert arguments == [
        *("--standalone", "--local-addr=127.0.0.1"),
        *("--nproc_per_node=4", "--max_restarts=2", "--log_dir=logs"),
        "--signals_to_handle=SIGTERM,SIGUSR1",
        *(str(ROOT / "train_gpt.py"), "--config", "a.py"),
    ]


def failure(exitcode: int) -> ProcessFailure:
    return ProcessFailure(local_rank=0, pid=1, exitcode=exitcode, error_file="")


def test_failed_ranks_determine_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    terminated = failure(-signal.SIGTERM)
    assert exit_code({0: failure(1), 1: terminated}) == 1
    assert exit_code({0: terminated, 1: failure(2)}) == 2
    assert capsys.readouterr().err == ""
    assert exit_code({0: failure(-signal.SIGABRT), 1: terminated}) == 1
    assert capsys.readouterr().err == "rank 0 was killed by SIGABRT\n"
    killed = failure(-signal.SIGKILL)
    assert exit_code({1: killed}, reported=[killed.pid + 1]) == 1
    assert capsys.readouterr().err == "rank 1 was killed by SIGKILL (out of memory?)\n"
    assert exit_code({1: killed}, reported=[killed.pid]) == 1
    assert capsys.readouterr().err == "", "another rank has"
