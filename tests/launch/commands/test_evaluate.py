"""cuboid evaluate up to torchrun: number of ranks, arguments, user errors."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate_gpt
from engine.plan import make_plan
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import write_record
from engine.world.coordination.launch_environment import LaunchInfo
from launch import cli, torchrun
from launch.arguments import run_and_overrides
from launch.commands import evaluate
from tests.support.offloading import STATISTICS_ON_DISK

CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 32
TENSOR_PARALLEL = 2
MODE = '1d'
MAX_STEPS = 10
model = dict(n_layer=2, n_head=4, n_embd=64, vocab_size=1000)
data = dict(type='synthetic')
"""
RUN = "runs/gpt-20260201-000000"


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Create the newest of two finished runs in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "count_gpus", lambda: 0)
    Path("gpt.py").write_text(CONFIG)
    plan = make_plan("gpt.py", gpus=None, environ={})
    for name in ("runs/gpt-20260101-000000", RUN):
        folder = RunFolder(Path(name))
        folder.path.mkdir(parents=True)
        write_record(folder, plan)
        folder.weights.touch()
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str], str]]:
    """Record torchrun's arguments instead of starting it."""
    calls: list[tuple[int, list[str], str]] = []

    def record(ranks: int, arguments: list[str], program: str) -> int:
        calls.append((ranks, arguments, program))
        return 0

    monkeypatch.setattr(torchrun, "run", record)
    return calls


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments as a rank does."""
    args = evaluate_gpt.parse(arguments)
    args.run, args.overrides = run_and_overrides(args)
    return args


@pytest.mark.parametrize(
    ("argv", "gpus", "ranks"),
    [
        ([], 0, 2),
        ([], 8, 8),
        (["--gpus", "4"], 8, 4),
        (["TENSOR_PARALLEL=1", "MODE=None"], 0, 1),
        (["TENSOR_PARALLEL=4", "MODE=2d", "PIPELINE=2"], 0, 8),
    ],
)
def test_number_of_ranks_follows_the_layout(monkeypatch, started, argv, gpus, ranks):
    monkeypatch.setattr(evaluate, "count_gpus", lambda: gpus)
    assert cli.main(["evaluate", *argv], {}) == 0
    ((found, arguments, program),) = started
    assert (found, program) == (ranks, "evaluate_gpt")
    args = parsed(arguments)
    assert args.run == Path(RUN)
    assert args.overrides == [word for word in argv if "=" in word]
    environ: dict[str, str] = {}
    launch_info = LaunchInfo(rank=0, size=ranks, launcher="torchrun")
    assert evaluate_gpt.plan(args, launch_info, environ).layout.gpus == ranks


def test_options_are_passed_to_the_ranks(started):
    options = ["--split", "train", "--samples", "7", "--last-n", "3", "--backend", "gloo", "--json"]
    other = "runs/gpt-20260101-000000"
    assert cli.main(["evaluate", other, "seed=7", "--step", "latest", *options], {}) == 0
    args = parsed(started[0][1])
    assert (args.run, args.overrides, args.step) == (Path(other), ["seed=7"], "latest")
    subject = evaluate.evaluation_request(args)
    assert (subject.split, subject.samples, subject.last_n) == ("train", 7, 3)
    assert (args.backend, args.json) == ("gloo", True)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["nowhere"], "nowhere does not exist"),
        ([RUN, "elsewhere"], f"expected one run, got 2: {RUN} elsewhere"),
        (["--step", "7"], f"{RUN}: no checkpoint 7; the run has none at all"),
        (["--last-n", "33"], "--last-n 33 is more than gpt.py:3: SEQ_LEN=32"),
        (["SEQ_LEN=16", "--last-n", "17"], "--last-n 17 is more than command line: SEQ_LEN=16"),
        (["--split", "train"], "gpt.py:8: data.type='synthetic' is endless; pass --samples N"),
        (
            ["data.validation=0.0"],
            "command line: data.validation=0.0, so there is no validation split; use",
        ),
        (
            ["model.n_layer=3"],
            "command line: model.n_layer=3 cannot be overridden: the run's weights have 2",
        ),
        (["--gpus", "3"], "gpt.py:4: 3 GPUs are not a multiple of 2"),
        (STATISTICS_ON_DISK, "command line: log.statistics=2 passes"),
        (
            ["--split", "tset"],
            "there is no split 'tset' of gpt.py:8: data.type='synthetic'; use one of",
        ),
        (["SEQ_LENGTH=3"], "command line: SEQ_LENGTH is not a setting"),
        (["--samples", "0"], "--samples"),
    ],
)
def test_impossible_evaluation_is_rejected_before_the_start(started, capsys, argv, line):
    assert cli.main(["evaluate", *argv], {}) == 2
    captured = capsys.readouterr()
    assert line in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert started == []


def test_invalid_run_is_rejected_without_importing_torch(run):
    """The message must not wait for the import of torch."""
    code = (
        "import sys; from launch.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "evaluate", str(run.path.absolute()), "SEQ_LEN=-1"]
    root = Path(__file__).parents[3]
    assert subprocess.run(command, capture_output=True, check=False, cwd=root).returncode == 2


def test_ranks_run_evaluate_gpt():
    arguments = torchrun.command(3, ["x"], logs=Path("logs"), program="evaluate_gpt")
    assert arguments[-2:] == [str(Path(evaluate_gpt.__file__)), "x"]
