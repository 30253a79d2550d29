"""Peak memory, compared with known allocations of a process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from engine.training.memory import peak_bytes, peak_resident_bytes

MIB = 2**20


def test_the_peak_does_not_fall_when_memory_is_freed():
    before = peak_resident_bytes()
    held = bytearray(b"x") * (before + 64 * MIB)
    del held
    assert peak_resident_bytes() >= before + 64 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only getrusage is there")
def test_the_peak_of_a_child_excludes_that_of_its_parent():
    held = bytearray(b"x") * (300 * MIB)
    code = "from engine.training.memory import peak_resident_bytes; print(peak_resident_bytes())"
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert int(child.stdout) < len(held)


def test_peak_bytes_on_a_cpu_is_the_peak_of_the_process():
    assert peak_bytes(torch.device("cpu")) >= peak_resident_bytes() - MIB


REUSE = """
import ctypes, resource, torch
from engine.training.memory import keep_freed_memory

pr_set_thp_disable = 41  # a huge page, where the machine gives them, is one fault for 512 pages
ctypes.CDLL(None).prctl(pr_set_thp_disable, 1, 0, 0, 0)

{}
def take():
    torch.ones(8 * 2**20)  # 32 MiB

for _ in range(30):  # small blocks take bites of what is freed, until there are enough holes
    take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
@pytest.mark.parametrize("keep", [False, True])
def test_freed_memory_is_reused_without_page_faults(keep: bool) -> None:
    code = REUSE.format("keep_freed_memory()" if keep else "")
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    faults = int(child.stdout)
    assert faults < 1000 if keep else faults > 3 * 8000


@pytest.mark.gpu
def test_peak_bytes_on_a_gpu_is_the_peak_of_torchs_allocator():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    held = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    del held
    assert 64 * MIB <= peak_bytes(torch.device("cuda", 0)) < 1024 * MIB
