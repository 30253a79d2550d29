"""The report of several configs: one line per config."""

from __future__ import annotations

import io

from rich.console import Console

from engine.estimate.result import Memory
from launch.validate.inspection import EstimatedPlan, Inspection
from launch.validate.listing import print_listing
from tests.launch.validate.support import GIB, case, made_up, plan, write


def listed(*found: Inspection, width: int = 80, terminal: bool = False) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    print_listing(found, console)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def accepted(name: str, one: EstimatedPlan) -> Inspection:
    return Inspection(source=name, case=one)


def test_every_config_has_a_line_with_its_verdict(tmp_path):
    path = write(tmp_path)
    held = made_up(Memory(parameters=20 * GIB))
    cut = case(path, held, "TENSOR_PARALLEL=2", "MODE=1d", "PIPELINE=2", "NUM_MICRO_BATCHES=8")
    warned = case(path, held, "NUM_MICRO_BATCHES=1", "PIPELINE=2")
    assert len(warned.plan.warnings) == 1
    assert listed(
        accepted("gpt/a.py", case(path, held)),
        accepted("gpt/b_longer.py", cut),
        accepted("gpt/c.py", warned),
        Inspection(source="gpt/d.py", problems=("d.py:1: no", "d.py:2: no")),
    ) == [
        "gpt/                   GPUs layout            of a GPU",
        "a.py        ok            1 serial              20 GiB",
        "b_longer.py ok            4 1d 2 x pipeline 2   20 GiB",
        "c.py        1 warning     2 pipeline 2          20 GiB",
        "d.py        2 problems",
    ]


def test_gpu_memory_adds_the_share_of_a_gpu(tmp_path):
    one = case(write(tmp_path), made_up(Memory(parameters=20 * GIB)), gpu_memory=80 * GIB)
    head, line = listed(accepted("a.py", one))
    assert head.split()[-3:] == ["of", "80", "GiB"]
    assert line.split()[-1] == "25%"


def test_files_of_different_folders_are_listed_with_their_paths(tmp_path):
    one = case(write(tmp_path), made_up(Memory(parameters=GIB)))
    lines = listed(accepted("x/a.py", one), accepted("y/a.py", one))
    assert [line.split()[0] for line in lines] == ["config", "x/a.py", "y/a.py"]


def test_lines_fit_a_terminal_and_are_complete_in_a_pipe(tmp_path):
    one = case(write(tmp_path), made_up(Memory(parameters=GIB)))
    name = "a" * 100 + ".py"
    assert listed(accepted(name, one))[1].startswith(name)
    assert max(map(len, listed(accepted(name, one), terminal=True))) <= 80


def test_layout_shows_zero_and_data_parallel_copies(tmp_path):
    path = write(tmp_path)
    two = EstimatedPlan(
        plan=plan(path, "zero.stage=2", gpus=2), estimate=made_up(Memory(parameters=GIB))
    )
    assert "data 2 x ZeRO 2" in listed(accepted("a.py", two))[1]
