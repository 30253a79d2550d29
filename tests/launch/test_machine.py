"""The demo's layout for each machine, and counting GPUs without torch."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from launch.demo_layout import choose
from launch.machine import Machine, count_gpus, this_machine
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


def test_gpu_count_equals_torchs_without_importing_it():
    code = (
        "import sys; from launch.machine import count_gpus; n = count_gpus();"
        "assert 'torch' not in sys.modules; import torch; assert n == torch.cuda.device_count(), n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
def test_hidden_gpus_are_not_counted(monkeypatch):
    if count_gpus() == 0:
        pytest.skip("no GPU here")
    code = "from launch.machine import count_gpus; assert count_gpus() == 0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("ranks", "share"), [(1, 80), (4, 80), (5, 40), (8, 40), (9, 26)])
def test_ranks_share_gpu_memory_evenly(ranks, share):
    assert Machine(gpus=4, memory=0, gpu_memory=80).gpu_memory_for(ranks) == share


def test_gpu_memory_is_none_without_gpus():
    machine = Machine(gpus=0, memory=0)
    assert (machine.device, machine.gpu_memory_for(2)) == ("cpu", None)
    assert Machine(gpus=1, memory=0).gpu_memory_for(1) is None


def test_detected_gpus_and_memory_equal_those_of_torch():
    code = (
        "import torch; from launch.machine import this_machine; m = this_machine();"
        "sizes = [torch.cuda.get_device_properties(n).total_memory for n in range(m.gpus)];"
        "assert m.gpu_memory == min(sizes, default=None), (m, sizes)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert 0 < this_machine().memory <= psutil.virtual_memory().total
