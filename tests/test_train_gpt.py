"""train_gpt.py's arguments; runs of it are in tests/launch/test_torchrun.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import UserError
from engine.plan import Plan
from engine.world.coordination.launch_environment import LaunchInfo
from launch.rank import REPORT_SECONDS
from tests.support.offloading import STATISTICS_ON_DISK
from train_gpt import main, parse, plan

CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 8
NUM_MICRO_BATCHES = 2
MAX_STEPS = 2
model = dict(n_layer=2, n_head=4, n_embd=16, vocab_size=32)
data = dict(type="synthetic")
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


def planned(*words: str, size: int = 2) -> Plan:
    return plan(parse(words), LaunchInfo(rank=0, size=size, launcher="torchrun"), {})


def test_config_and_overrides_parse_between_options(config: str) -> None:
    found = planned("seed=3", "--config", config, "--backend", "gloo", "BATCH_SIZE=8", "--gpus=2")
    assert (found.settings.seed, found.settings.batch_size) == (3, 8)
    assert found.layout.data == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "no config file given; pass --config FILE, or --resume RUN"),
        (["--config", "CONFIG", "--gpus", "4"], "--gpus 4, but 2 ranks were started"),
        (["--config", "CONFIG", *STATISTICS_ON_DISK], "log.statistics=2 passes"),
    ],
)
def test_invalid_plan_is_rejected(config: str, words: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        planned(*(config if word == "CONFIG" else word for word in words))


def test_invalid_arguments_are_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "x"], {}) == 2
    assert capsys.readouterr().err == "train_gpt.py: argument --port: invalid int value: 'x'\n"
    assert main(["--config", "a.py", "--from_torch"], {}) == 2
    assert capsys.readouterr().err.startswith("--from_torch needs the environment")


def test_only_rank_0_reports_invalid_arguments(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("launch.rank.time.sleep", waits.append)
    assert main(["--port", "x"], {"RANK": "1", "WORLD_SIZE": "2"}) == 2
    assert capsys.readouterr().err == ""
    assert waits == [REPORT_SECONDS], "rank 0 is given time to speak"
