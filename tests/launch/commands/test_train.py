"""cuboid train up to torchrun: number of ranks, arguments, user errors."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import train_gpt
from engine.checkpoint.directory import CheckpointDirectory
from engine.plan import make_plan
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import write_record
from engine.world.coordination.launch_environment import LaunchInfo
from launch import cli, torchrun
from launch.arguments import add_config, add_run, config_and_overrides
from launch.commands import train
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
DEMO = next(path for path in train.DEMOS if path.is_file())


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "gpt.py").write_text(CONFIG)
    return str(tmp_path / "gpt.py")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    """Record torchrun's arguments instead of starting it."""
    calls: list[tuple[int, list[str]]] = []

    def record(ranks: int, arguments: list[str], *, restarts: int) -> int:
        calls.append((ranks, arguments))
        return 0

    monkeypatch.setattr(torchrun, "run", record)
    return calls


def parsed(arguments: list[str]) -> tuple[Path, list[str], Path | None]:
    """Parse the arguments as train_gpt.py does; return config, overrides and output."""
    parser = argparse.ArgumentParser()
    add_config(parser, required=True)
    add_run(parser)
    args = parser.parse_intermixed_args(arguments)
    config, overrides = config_and_overrides(args)
    assert config is not None
    return config, overrides, args.output


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int, cores: int = 4) -> None:
    monkeypatch.setattr(train, "count_gpus", lambda: gpus)
    monkeypatch.setattr(train, "usable_cores", lambda: cores)


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 2), (2, 2), (3, 2), (7, 6), (8, 8)])
def test_ranks_fill_the_gpus_with_whole_copies_of_the_model(
    monkeypatch, started, config, gpus, ranks
):
    machine(monkeypatch, gpus)
    assert cli.main(["train", config, "seed=7", "--output", "out"], {}) == 0
    ((found, arguments),) = started
    assert found == ranks
    assert parsed(arguments) == (Path(config), ["seed=7"], Path("out"))


@pytest.mark.parametrize(
    ("argv", "environ", "ranks"),
    [
        (["--gpus", "4"], {}, 4),
        ([], {"NPROC": "6"}, 6),
        (["--gpus", "4"], {"NPROC": "6"}, 4),
        ([], {"NPROC": ""}, 2),
        (["TENSOR_PARALLEL=4", "MODE=2d"], {}, 4),
    ],
)
def test_requested_number_of_ranks_is_used(monkeypatch, started, config, argv, environ, ranks):
    machine(monkeypatch, 2 if ranks == 2 else 0)
    assert cli.main(["train", "--config", config, *argv], environ) == 0
    assert started[0][0] == ranks


def test_backend_is_passed_to_the_ranks(monkeypatch, started, config):
    machine(monkeypatch, 2)
    assert cli.main(["train", config, "--backend", "gloo"], {}) == 0
    assert "--backend=gloo" in started[0][1]


def test_too_few_gpus_are_rejected_with_a_remedy(monkeypatch, started, config, capsys):
    machine(monkeypatch, 1)
    assert cli.main(["train", config], {}) == 2
    assert "--gpus 2" in capsys.readouterr().err
    assert started == []


@pytest.mark.parametrize(
    ("argv", "environ", "expected"),
    [
        (["--gpus", "3"], {}, "3"),
        ([], {"NPROC": "many"}, "NPROC=many"),
        ([], {"NPROC": "0"}, "NPROC=0"),
        (["SEQ_LEN=-1"], {}, "SEQ_LEN"),
        (STATISTICS_ON_DISK, {}, "log.statistics=2 passes"),
        (["log.dir=/proc/1/run"], {}, "/proc/1/run cannot be written"),
        (["--output", "/proc/1"], {}, "--output /proc/1"),
    ],
)
def test_config_that_cannot_run_is_rejected_before_the_start(
    monkeypatch, started, config, capsys, argv, environ, expected
):
    machine(monkeypatch, 0)
    assert cli.main(["train", config, *argv], environ) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert started == []


@pytest.mark.parametrize("argv", [[], [str(DEMO)], ["--config", str(DEMO)]])
@pytest.mark.parametrize(
    ("gpus", "ranks", "tensor", "mode"),
    [(0, 4, 4, "2d"), (1, 1, 1, "serial"), (3, 2, 2, "1d"), (6, 4, 4, "2d"), (8, 8, 4, "2d")],
)
def test_demo_gets_a_layout_that_suits_the_machine_and_prints_it(
    monkeypatch, started, capsys, argv, gpus, ranks, tensor, mode
):
    machine(monkeypatch, gpus)
    assert cli.main(["train", *argv, "MAX_STEPS=5"], {}) == 0
    ((found, arguments),) = started
    assert found == ranks
    config, overrides, _ = parsed(arguments)
    assert config.samefile(DEMO)
    assert overrides == [f"TENSOR_PARALLEL={tensor}", f"MODE={mode}", "PIPELINE=1", "MAX_STEPS=5"]
    assert mode in capsys.readouterr().out


def test_demo_uses_the_layout_of_the_overrides(monkeypatch, started, capsys):
    machine(monkeypatch, 0)
    assert cli.main(["train", "TENSOR_PARALLEL=2", "MODE=1d"], {}) == 0
    assert started[0][0] == 2
    assert parsed(started[0][1])[1] == ["TENSOR_PARALLEL=2", "MODE=1d"]
    assert capsys.readouterr().out == ""


def test_demo_uses_the_requested_number_of_processes(monkeypatch, started):
    machine(monkeypatch, 8)
    assert cli.main(["train"], {"NPROC": "2"}) == 0
    assert started[0][0] == 2
    assert "MODE=1d" in started[0][1]


def test_invalid_config_is_rejected_without_importing_torch(config):
    """The message must not wait for the import of torch."""
    code = (
        "import sys; from launch.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "train", config, "SEQ_LEN=-1"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


@pytest.fixture
def stopped(tmp_path: Path, config: str) -> RunFolder:
    """Create a run of two copies of the model whose config file was deleted."""
    folder = RunFolder(tmp_path / "elsewhere" / "run")
    folder.path.mkdir(parents=True)
    write_record(folder, make_plan(config, gpus=4, overrides=["seed=5"], environ={}))
    CheckpointDirectory(folder.checkpoints).folder(4).mkdir(parents=True)
    folder.status.write_text('{"state": "interrupted", "step": 4}')
    Path(config).unlink()
    return folder


@pytest.mark.parametrize(
    ("argv", "gpus", "ranks"), [([], 0, 4), ([], 8, 4), ([], 3, 2), (["--gpus", "2"], 0, 2)]
)
def test_run_resumes_without_a_config(monkeypatch, started, stopped, argv, gpus, ranks):
    machine(monkeypatch, gpus)
    assert cli.main(["train", "--resume", str(stopped.path), "log.every=2", *argv], {}) == 0
    ((found, arguments),) = started
    assert found == ranks
    args = train_gpt.parse(arguments)
    plan = train_gpt.plan(args, LaunchInfo(rank=0, size=ranks, launcher="torchrun"), {})
    settings = plan.settings
    assert (settings.name, settings.seed, settings.log.every) == ("gpt", 5, 2)
    assert plan.layout.gpus == ranks


def test_data_in_the_environment_is_ignored_by_a_resume(monkeypatch, started, stopped, capsys):
    machine(monkeypatch, 0)
    assert cli.main(["train", "--resume", str(stopped.path)], {"DATA": "new.txt"}) == 0
    assert "DATA=new.txt in the environment is ignored: the run uses " in capsys.readouterr().out


def test_only_the_folder_of_the_resumed_run_is_probed(
    monkeypatch, started, stopped, tmp_path, capsys
):
    """The current folder need not be writable if nothing is written there."""
    probed: list[Path] = []
    monkeypatch.setattr("launch.preflight._probe", probed.append)
    machine(monkeypatch, 0)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--resume", str(stopped.path)], {}) == 0
    assert {*probed} == {stopped.path}


FINISHED = """
import sys
from launch.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


def test_finished_run_is_reported_without_importing_torch(stopped):
    stopped.status.write_text('{"state": "finished", "step": 10}')
    CheckpointDirectory(stopped.checkpoints).folder(10).mkdir()
    command = [sys.executable, "-c", FINISHED, "train", "--resume", str(stopped.path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"{stopped.path} is finished at step 10: MAX_STEPS=N")


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("small", "one with model.type='gpt2_small' or 'languini-small'"),
        ("gpt2-xl", "one with model.type='gpt2-xl'"),
        ("nothing.py", "pass the path of a config file"),
    ],
)
def test_a_missing_config_gives_a_remedy_that_knows_presets(started, capsys, file, remedy):
    assert cli.main(["train", file], {}) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{file}: does not exist; pass the path of a config file")
    assert err.endswith(f"{remedy}\n")
    assert started == []


@pytest.mark.parametrize(
    ("resume", "expected"),
    [("nowhere", "nowhere does not exist"), (".", "neither a run nor a checkpoint")],
)
def test_resume_of_a_path_without_a_run_is_rejected(
    monkeypatch, started, tmp_path, capsys, resume, expected
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--resume", resume], {}) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert err.count("\n") == 1
    assert started == []
