"""The demo's layout for each machine."""

from __future__ import annotations

import pytest

from launch.demo_layout import choose
from models.parallel.registry import modes


@pytest.mark.parametrize(
    ("gpus", "mode", "tensor", "processes"),
    [
        (1, "serial", 1, 1),
        (2, "1d", 2, 2),
        (3, "1d", 2, 2),
        (4, "2d", 4, 4),
        (5, "2d", 4, 4),
        (7, "2d", 4, 4),
        (8, "2d", 4, 8),
        (11, "2d", 4, 8),
        (16, "2d", 4, 16),
    ],
)
def test_number_of_gpus_determines_the_demo_layout(gpus, mode, tensor, processes):
    choice = choose(gpus)
    assert choice.processes == processes
    assert choice.overrides[:2] == (f"TENSOR_PARALLEL={tensor}", f"MODE={mode}")


@pytest.mark.parametrize(
    ("cores", "mode", "processes"),
    [(1, "serial", 1), (2, "1d", 2), (3, "1d", 2), (4, "2d", 4), (7, "2d", 4), (64, "2d", 4)],
)
def test_cpu_layout_has_at_most_one_process_per_core(cores, mode, processes):
    choice = choose(0, cores=cores)
    assert choice.processes == processes
    assert choice.overrides[:2] == (f"TENSOR_PARALLEL={processes}", f"MODE={mode}")


@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("processes", range(1, 13))
def test_requested_processes_are_all_used_in_a_legal_layout(gpus, processes):
    choice = choose(gpus, processes)
    assert choice.processes == processes
    settings = dict(override.split("=") for override in choice.overrides)
    tensor = int(settings["TENSOR_PARALLEL"])
    assert processes % tensor == 0
    assert modes()[settings["MODE"]].axes(tensor, 1) is not None


def test_reason_names_devices_and_layout():
    assert choose(0, cores=2).reason == "no GPU, 2 cores: mode 1d over 2 processes"
    assert choose(0, cores=1).reason == "no GPU, 1 core: serial"
    assert choose(1).reason == "1 GPU: serial"
    assert choose(8).reason == "8 GPUs: mode 2d over 4 processes x data parallel 2"
    assert choose(0, 2).reason == "2 processes requested: mode 1d over 2 processes"
