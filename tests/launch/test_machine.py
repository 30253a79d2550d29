"""The GPUs and the memory of this machine, counted without torch."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from launch.machine import Machine, count_gpus, this_machine


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
