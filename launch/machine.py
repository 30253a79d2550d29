"""This machine's GPUs and memory. Imports no torch."""

from __future__ import annotations

import ctypes
import importlib.util
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The devices and memory of a machine."""

    gpus: int
    memory: int
    """Bytes of host memory."""
    gpu_memory: int | None = None
    """Bytes of the smallest GPU, None if unknown."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.gpus else "cpu"

    def gpu_memory_for(self, ranks: int) -> int | None:
        """Return the bytes of GPU memory per rank; ranks share GPUs if there are more ranks. None
        without GPUs, or if their memory is unknown."""
        if not self.gpus or self.gpu_memory is None:
            return None
        return self.gpu_memory // -(-ranks // self.gpus)


def this_machine() -> Machine:
    gpus = count_gpus()
    return Machine(gpus=gpus, memory=_host_memory(), gpu_memory=_gpu_memory(gpus))


def count_gpus() -> int:
    """Count the GPUs that torch would find: 0 if torch is a CPU build or there is no CUDA driver.

    Asks the driver, which respects CUDA_VISIBLE_DEVICES, because importing torch takes seconds.
    """
    driver = _driver() if _torch_has_cuda() else None
    count = ctypes.c_int()
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _gpu_memory(gpus: int) -> int | None:
    """Return the memory of the smallest GPU in bytes, None if it is unknown."""
    driver = _driver() if gpus else None
    if driver is None:
        return None
    sizes = []
    for number in range(gpus):
        device, size = ctypes.c_int(), ctypes.c_size_t()
        if driver.cuDeviceGet(ctypes.byref(device), number) != 0:
            return None
        if driver.cuDeviceTotalMem_v2(ctypes.byref(size), device) != 0:
            return None
        sizes.append(size.value)
    return min(sizes)


def _driver() -> ctypes.CDLL | None:
    """Load and initialize the CUDA driver. None if there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _host_memory() -> int:
    """Return the memory of this machine, or the limit of this container, in bytes."""
    memory = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no limit, or not Linux
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def _torch_has_cuda() -> bool:
    """Return whether the torch that would be imported is a CUDA build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return Path(spec.origin).with_name("lib").joinpath("libtorch_cuda.so").exists()
