"""The world of a recorded run, as `cuboid evaluate` opens it, and evaluations that fail."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from engine.errors import RunError, UserError
from engine.evaluation.evaluate import evaluate
from engine.evaluation.request import EvaluationRequest
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import plan_of_run
from engine.world.coordination.launch_environment import LOOPBACK, LaunchInfo
from engine.world.distributed import open_world
from tests.support.worlds import free_port


@contextlib.contextmanager
def world_of_run(rank: int, size: int, port: int, overrides: tuple[str, ...]) -> Any:
    """Open the world of a rank, with the plan of the run in the working folder."""
    launch_info = LaunchInfo(rank=rank, size=size, host=LOOPBACK, port=port, launcher="by hand")

    def plan() -> Any:
        return plan_of_run(RunFolder(Path("run")), gpus=size, overrides=overrides)

    with open_world(plan, launch_info) as world:
        yield world


def failed_evaluation(
    folder: Path, *overrides: str, subject: EvaluationRequest | None = None, step: str = "latest"
) -> str:
    """Run an evaluation that fails on one rank and return its stderr."""
    request = subject or EvaluationRequest()
    with free_port() as port, contextlib.redirect_stderr(io.StringIO()) as err:
        with (
            pytest.raises((UserError, RunError)),
            world_of_run(0, 1, port, overrides) as world,
        ):
            evaluate(world, RunFolder(Path("run")), step, request, cache=folder / "cache")
        assert "Traceback" not in err.getvalue()
        return err.getvalue()
