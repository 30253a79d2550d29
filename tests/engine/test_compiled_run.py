"""Runs with compile=True: compilation before the first step, and the same training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch._dynamo.utils import counters

from engine.training.step import StepResult
from engine.training.trainer import Trainer
from engine.world.world import World
from models.gpt import GPT
from tests.support.jobs import RUN, into_run, run_all

SHARDED = ("MODE=1d", "TENSOR_PARALLEL=2", "precision=float64", "model.n_layer=3")
OPTIONS = ("zero.stage=1", "model.resid_pdrop=0.1", "eval.every=2", "eval.samples=4")


def compilations() -> int:
    """Return the number of graphs that torch has compiled in this process."""
    return int(counters["stats"]["unique_graphs"])


@contextmanager
def traced_only(world: World) -> Iterator[None]:
    """Trace blocks without generating code, and fail if a step or a validation compiles any."""

    def compiles_nothing(method: Any) -> Any:
        def call(self: Trainer, *args: Any, **more: Any) -> StepResult:
            before = compilations()
            assert before > 0, "nothing was compiled before the first step"
            result: StepResult = method(self, *args, **more)
            assert compilations() == before
            return result

        return call

    traced = partialmethod(GPT.compile_blocks, backend="aot_eager")
    with (
        patch.object(GPT, "compile_blocks", traced),
        patch.object(Trainer, "step", compiles_nothing(Trainer.step)),
        patch.object(Trainer, "validate", compiles_nothing(Trainer.validate)),
    ):
        yield
    # A block is compiled in the pieces between its linear layers, and two dropouts cut two more in
    # training. The other blocks need no more.
    assert compilations() <= 7 + 5


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the log's rows without times and memory."""
    lines = [json.loads(line) for line in (folder / RUN / "log.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "grad_norm", "tokens", "val_loss")
    return [{name: line[name] for name in kept if name in line} for line in lines]


def test_a_compiled_run_has_the_losses_of_an_eager_one(tmp_path: Path) -> None:
    eager = into_run(tmp_path / "eager", *SHARDED, *OPTIONS)
    compiled = into_run(
        tmp_path / "compiled", *SHARDED, *OPTIONS, "compile=True", planted=traced_only
    )
    without, with_ = run_all([eager, compiled], ranks=2)
    assert [ended.error + ended.err for ended in with_] == ["", ""]
    assert rows(tmp_path / "compiled") == rows(tmp_path / "eager")
    assert len(rows(tmp_path / "compiled")) >= 4
    printed = with_[0].out.splitlines()
    (first,) = [
        n for n, line in enumerate(printed) if line.startswith("compiling the model; torch")
    ]
    assert re.fullmatch(r"compiled in \d+:\d\d", printed[first + 1])
    assert not any("compil" in line for line in without[0].out.splitlines())
