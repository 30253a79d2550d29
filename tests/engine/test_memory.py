"""Peak memory against what a process is known to have held."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from engine.memory import peak_bytes, peak_resident_bytes

MIB = 2**20


def test_the_peak_stays_when_memory_is_given_back():
    before = peak_resident_bytes()
    held = bytearray(b"x") * (before + 64 * MIB)
    del held
    assert peak_resident_bytes() >= before + 64 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only getrusage is there")
def test_a_child_does_not_start_with_its_parents_peak():
    held = bytearray(b"x") * (300 * MIB)
    code = "from engine.memory import peak_resident_bytes; print(peak_resident_bytes())"
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert int(child.stdout) < len(held)


def test_on_a_cpu_it_is_the_process():
    assert peak_bytes(torch.device("cpu")) >= peak_resident_bytes() - MIB


@pytest.mark.gpu
def test_on_a_gpu_it_is_torchs_allocator():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    held = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    del held
    assert 64 * MIB <= peak_bytes(torch.device("cuda", 0)) < 1024 * MIB
