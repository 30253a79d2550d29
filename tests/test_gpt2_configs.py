"""Every GPT-2 config of the table trains end to end with a small model, to the losses of one
process; the slow tests include a real torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from engine.plan import make_plan
from engine.training.step import StepResult
from tests.support.programs import by_hand
from tests.support.runs import open_run

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "gpt_configs"
SMALL = (
    "MAX_STEPS=2",
    "SEQ_LEN=32",
    "model.n_layer=4",
    "model.n_head=4",
    "model.n_embd=64",
    "model.vocab_size=512",
    "data.type=synthetic",
    "eval.batches=1",
)
WITHIN = 2e-3
"""Of a loss in fp16, after two steps of Adam."""
NORM_WITHIN = 1e-2
"""Of the norm of a gradient. It shows a sum of gradients that is missing: two steps hardly show it
in the losses."""


@dataclass(frozen=True, kw_only=True)
class ConfigRow:
    """A row of the table: a config on a number of processes, started by hand or by ``torchrun``."""

    config: str
    processes: int
    slow: bool = False
    torchrun: bool = False

    @property
    def name(self) -> str:
        return f"{self.config}-{self.processes}" + " under torchrun" * self.torchrun


ROWS = [
    ConfigRow(config="gpt2_vanilla", processes=1),
    ConfigRow(config="gpt2_vanilla", processes=2, slow=True),
    ConfigRow(config="gpt2_1d", processes=2),
    ConfigRow(config="gpt2_2d", processes=4, slow=True),
    ConfigRow(config="gpt2_2p5d", processes=2),
    ConfigRow(config="gpt2_2p5d_8", processes=8, slow=True),
    ConfigRow(config="gpt2_3d", processes=8, slow=True),
    ConfigRow(config="gpt2_pp", processes=2),
    ConfigRow(config="gpt2_zero2", processes=1),
    ConfigRow(config="gpt2_zero3", processes=1),
    ConfigRow(config="gpt2_nvme", processes=1),
    ConfigRow(config="gpt2_pp1d", processes=8),
    ConfigRow(config="gpt2_pp1d", processes=8, torchrun=True, slow=True),  # as in the README
    ConfigRow(config="gpt2_zero3_pp1d", processes=8, slow=True),
]


def test_every_gpt2_config_is_tested() -> None:
    assert {row.config for row in ROWS} == {path.stem for path in CONFIGS.glob("gpt2_*.py")}


def train(row: ConfigRow, folder: Path) -> list[dict[str, float]]:
    """Train and return the rows of the log."""
    nvme = [f"NVME_PATH={folder / 'disk'}"] if row.config == "gpt2_nvme" else []
    (folder / "disk").mkdir()
    config = f"--config={CONFIGS / row.config}.py"
    arguments = [config, *SMALL, *nvme, f"--output={folder / 'run'}"]
    if row.torchrun:
        under_torchrun(row.processes, arguments, folder)
    else:
        ranks = by_hand(row.processes, arguments, folder)
        assert [left.code for left in ranks] == [0] * row.processes, [left.err for left in ranks]
    assert (folder / "run" / "model.safetensors").is_file()
    assert not list((folder / "disk").iterdir()), "what was put on the disk is gone"
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


def under_torchrun(processes: int, arguments: list[str], folder: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ranks, script = f"--nproc_per_node={processes}", str(ROOT / "train_gpt.py")
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environ |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder), "TMPDIR": str(folder)}
    done = subprocess.run(
        [*torchrun, ranks, script, *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@cache
def alone(samples: int, *optimizer: str) -> tuple[list[StepResult], float]:
    """Return the results of two steps and the loss of a validation of as many samples, in this
    process, without sharding, activation checkpointing or offloading."""
    overrides = [*SMALL, f"BATCH_SIZE={samples}", "model.checkpoint=False", *optimizer]
    run = open_run(0, 1, CONFIGS / "gpt2_vanilla.py", overrides, steps=2)
    return [run.step(step) for step in (1, 2)], run.validate().loss


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.slow] * row.slow, id=row.name) for row in ROWS],
)
def test_shipped_config_trains_the_same_model_as_one_process(
    row: ConfigRow, tmp_path: Path
) -> None:
    first, second = train(row, tmp_path)
    plan = make_plan(CONFIGS / f"{row.config}.py", gpus=row.processes, overrides=SMALL, environ={})
    optimizer = plan.settings.optimizer
    expected, validation = alone(
        plan.global_batch, f"optimizer.type={optimizer.type}", f"optimizer.decay={optimizer.decay}"
    )
    for found, step in zip((first, second), expected, strict=True):
        assert found["loss"] == pytest.approx(step.loss, rel=WITHIN)
        assert found["grad_norm"] == pytest.approx(step.grad_norm, rel=NORM_WITHIN)
    assert second["val_loss"] == pytest.approx(validation, rel=WITHIN)
    assert (first["skipped"], second["skipped"]) == (0, 0)
    assert first["tokens"] == 32 * plan.global_batch
