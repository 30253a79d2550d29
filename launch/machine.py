"""The machine at hand, and the layout of the main job that suits it. Imports no torch."""

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
    """A layout for a machine: the overrides that ask for it, its processes, and why it is so."""

    overrides: tuple[str, ...]
    processes: int
    reason: str


def choose(gpus: int, processes: int | None = None, *, cores: int = 1) -> LayoutChoice:
    """Choose the demo's layout on a machine with ``gpus`` GPUs, or on ``cores`` cores without one.

    1 device: serial; 2 or 3: 1d over 2; from 4 on: 2d over 4, on GPUs data parallel as often as
    that fits. More processes than cores would wait for each other. ``processes`` forces their
    number: then all of them are used.
    """
    if processes is not None:
        return _layout(processes, f"{plural(processes, 'process', 'es')}, as asked")
    if gpus == 0:
        return _layout(_usable_devices(min(cores, 4)), f"no GPU here, {plural(cores, 'core')}")
    return _layout(_usable_devices(gpus), f"{plural(gpus, 'GPU')} here")


def _usable_devices(devices: int) -> int:
    """How many of so many devices a layout of tensor parallelism 1, 2 or 4 uses."""
    return devices if devices < 3 else 2 if devices == 3 else devices - devices % 4


def _layout(processes: int, why: str) -> LayoutChoice:
    """The most tensor parallelism, up to 2d over 4, that uses all ``processes``."""
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
    """What a machine has; ``memory`` is the host's and ``gpu_memory`` the smallest GPU's, in bytes,
    None where it is not known."""

    gpus: int
    memory: int
    gpu_memory: int | None = None

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.gpus else "cpu"

    def gpu_memory_for(self, ranks: int) -> int | None:
        """What each rank may use of its GPU, which ranks share when there are too few; None where
        they compute on CPUs or nothing is known."""
        if not self.gpus or self.gpu_memory is None:
            return None
        return self.gpu_memory // -(-ranks // self.gpus)


def this_machine() -> Machine:
    gpus = count_gpus()
    return Machine(gpus=gpus, memory=_host_memory(), gpu_memory=_gpu_memory(gpus))


def count_gpus() -> int:
    """GPUs that torch would find: 0 where torch is a CPU build or there is no CUDA driver.

    Asks the driver itself, which honours CUDA_VISIBLE_DEVICES, in place of importing torch, which
    takes seconds.
    """
    driver = _driver() if _torch_has_cuda() else None
    found = ctypes.c_int()
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(found)) != 0:
        return 0
    return found.value


def _gpu_memory(gpus: int) -> int | None:
    """Bytes of the smallest of so many GPUs."""
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
    """CUDA's driver, started; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _host_memory() -> int:
    """Bytes that the machine, or the container this runs in, has."""
    memory = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no limit, or no Linux
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def _torch_has_cuda() -> bool:
    """Whether the torch that would be imported brings its CUDA half."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return Path(spec.origin).with_name("lib").joinpath("libtorch_cuda.so").exists()
