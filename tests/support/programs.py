"""Rank programs, started as by a launcher but in forked processes: a new process would spend
seconds on its imports."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

from engine.world.coordination.launch_environment import LOOPBACK
from tests.support.worlds import free_port, run_world


@dataclass(frozen=True, kw_only=True)
class Start:
    """Start of one rank of ``program``: its arguments, and its variables besides those of all
    ranks."""

    program: str = "train_gpt"
    arguments: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Left:
    """Exit code and output of a rank."""

    code: int
    out: str
    err: str


def by_hand(
    ranks: int, arguments: Sequence[str], folder: Path, program: str = "train_gpt"
) -> list[Left]:
    """Run ``program`` in ``folder`` on ranks that are started by hand; without a launcher if there
    is only one."""
    return [left for (left,) in all_by_hand(ranks, [(program, arguments)], folder)]


def all_by_hand(
    ranks: int, commands: Sequence[tuple[str, Sequence[str]]], folder: Path
) -> list[list[Left]]:
    """Run several programs with their arguments one after another in the same processes; return all
    results of each rank."""
    launches = []
    with contextlib.ExitStack() as held:
        for program, arguments in commands:
            port = held.enter_context(free_port())
            common = [f"--host={LOOPBACK}", f"--port={port}", f"--world_size={ranks}"]
            by_rank = [[*common, f"--rank={rank}"] if ranks > 1 else [] for rank in range(ranks)]
            launches.append(
                [Start(program=program, arguments=[*arguments, *more]) for more in by_rank]
            )
        results: list[list[Left]] = run_world(ranks, ranks_of, launches, folder, open_group=False)
        return results


def run_ranks(starts: Sequence[Start], folder: Path) -> list[Left]:
    """Run one rank for each start, in ``folder``."""
    size = len(starts)
    return [left for (left,) in run_world(size, ranks_of, [starts], folder, open_group=False)]


def ranks_of(rank: int, size: int, launches: Sequence[Sequence[Start]], folder: Path) -> list[Left]:
    """Run one rank of each launch, one launch after another."""
    os.chdir(folder)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(folder)}
    return [_leave(starts[rank]) for starts in launches]


def _leave(start: Start) -> Left:
    main = import_module(start.program).main
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, start.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(start.arguments, os.environ)
    return Left(code=code, out=out.getvalue(), err=err.getvalue())
