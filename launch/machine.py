"""This machine's GPUs and memory, and the demo's layout on it. Imports no torch."""

from __future__ import annotations

import ctypes
import importlib.util
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from engine.formatting import plural


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """A layout that suits a machine."""

    overrides: tuple[str, ...]
    """The settings of the layout."""
    processes: int
    reason: str
    """The devices found and the layout chosen, as printed before the demo starts."""


def choose(gpus: int, processes: int | None = None, *, cores: int = 1) -> LayoutChoice:
    """Choose the demo's layout on a machine with ``gpus`` GPUs, or without GPUs on ``cores`` cores.

    1 device: serial; 2 or 3: 1d over 2; 4 or more: 2d over 4, with as many data-parallel copies as
    there are GPUs for. On a CPU at most one process per core, since more would wait for each other.

    processes: use exactly this number of processes.
    """
    if processes is not None:
        return _layout(processes, f"{plural(processes, 'process', 'es')} requested")
    if gpus == 0:
        return _layout(_usable_devices(min(cores, 4)), f"no GPU, {plural(cores, 'core')}")
    return _layout(_usable_devices(gpus), f"{plural(gpus, 'GPU')}")


def _usable_devices(devices: int) -> int:
    """Return the largest number of ``devices`` that tensor parallelism 1, 2 or 4 uses fully."""
    return devices if devices < 3 else 2 if devices == 3 else devices - devices % 4


def _layout(processes: int, why: str) -> LayoutChoice:
    """Return the layout with the most tensor parallelism, up to 2d over 4, on all ``processes``."""
    tensor, mode = next(
        (size, mode)
        for size, mode in ((4, "2d"), (2, "1d"), (1, "serial"))
        if processes % size == 0
    )
    data = processes // tensor
    how = "serial" if tensor == 1 else f"mode {mode} over {tensor} processes"
    if data > 1:
        how += f" x data parallel {data}"
    overrides = (f"TENSOR_PARALLEL={tensor}", f"MODE={mode}", "PIPELINE=1")
    return LayoutChoice(overrides=overrides, processes=processes, reason=f"{why}: {how}")


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
