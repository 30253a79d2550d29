"""cuboid validate as a user starts it: what it says, its exit codes, and that it is quick."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launch import cli

CONFIG = """
BATCH_SIZE = 6
SEQ_LEN = 32
NUM_MICRO_BATCHES = 2
TENSOR_PARALLEL = 4
MODE = '2d'
MAX_STEPS = 10
model = dict(n_layer=2, n_head=4, n_embd=64, vocab_size=1000)
data = dict(type='synthetic')
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "gpt.py").write_text(CONFIG)
    return str(tmp_path / "gpt.py")


def test_a_legal_config_is_told_with_its_warnings(config, capsys):
    assert cli.main(["validate", config], {}) == 0
    out = capsys.readouterr().out
    assert "tensor 4 (2d: r=2 c=2) x pipeline 1 x data 1 = 4 processes" in out
    (warning,) = (line for line in out.splitlines() if line.startswith("warning: "))
    assert "gpt.py:2: BATCH_SIZE=6" in warning


def test_gpus_and_overrides_reach_the_plan(config, capsys):
    assert cli.main(["validate", "--gpus", "8", config, "BATCH_SIZE=8"], {}) == 0
    assert "8 samples x data 2 x accumulation 1 = 16 samples" in capsys.readouterr().out


def test_the_environment_is_the_configs_too(tmp_path, capsys):
    path = tmp_path / "gpt.py"
    path.write_text("import os\n" + CONFIG + "BATCH_SIZE = int(os.environ.get('B', '8'))\n")
    assert cli.main(["validate", str(path)], {"B": "12"}) == 0
    assert "12 samples x data 1" in capsys.readouterr().out


def test_every_problem_is_a_line_on_stderr_and_the_code_is_2(config, capsys):
    overrides = ["TENSOR_PARALLEL=6", "foo=3", "optimizer.lr=-1"]
    assert cli.main(["validate", config, *overrides], {}) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 3
    assert "TENSOR_PARALLEL=6 is not a square" in captured.err


def test_a_file_must_be_named_and_be_there(tmp_path, capsys):
    assert cli.main(["validate"], {}) == 2
    assert "cuboid validate FILE" in capsys.readouterr().err
    assert cli.main(["validate", str(tmp_path / "none.py")], {}) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_it_takes_no_torch_and_no_time(config):
    """Processor time, since others may be at work on this machine."""
    code = (
        "import sys; from launch.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules; sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, "validate", config], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert spent < 0.5


def test_a_config_that_would_run_code_runs_nothing(tmp_path, capsys):
    mark = tmp_path / "ran"
    path = tmp_path / "evil.py"
    attempts = [f"open({str(mark)!r}, 'w')", f"__import__('os').mkdir({str(mark)!r})"]
    for attempt in attempts:
        path.write_text(f"{CONFIG}seed = {attempt}\n")
        assert cli.main(["validate", str(path)], {}) == 2
        assert f"{path}:10:" in capsys.readouterr().err
    assert not mark.exists()
