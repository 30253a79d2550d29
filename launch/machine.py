"""The machine at hand, and the layout of the main job that suits it. Imports no torch."""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from pathlib import Path

CPU_PROCESSES = 4


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A layout for a machine: the overrides that ask for it, its processes, and why it is so."""

    overrides: tuple[str, ...]
    processes: int
    reason: str


def choose(gpus: int, processes: int | None = None) -> Choice:
    """The main job's layout on a machine with ``gpus`` GPUs.

    None: 2d over 4 processes; 1: serial; 2 or 3: 1d over 2; from 4 on: 2d over 4, data parallel
    as often as that fits. ``processes`` forces their number: then all of them are used.
    """
    if processes is not None:
        return _layout(processes, f"{_plural(processes, 'process', 'es')}, as asked")
    if gpus == 0:
        return _layout(CPU_PROCESSES, "no GPU here")
    used = gpus if gpus < 3 else 2 if gpus == 3 else gpus - gpus % 4
    return _layout(used, f"{_plural(gpus, 'GPU', 's')} here")


def _layout(processes: int, why: str) -> Choice:
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
    return Choice(overrides=overrides, processes=processes, reason=f"{why}: {how}")


def count_gpus() -> int:
    """GPUs that torch would find: 0 where torch is a CPU build or there is no CUDA driver.

    Asks the driver itself, which honours CUDA_VISIBLE_DEVICES, in place of importing torch, which
    takes seconds.
    """
    if not _torch_has_cuda():
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    found = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(found)) != 0:
        return 0
    return found.value


def _torch_has_cuda() -> bool:
    """Whether the torch that would be imported brings its CUDA half."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return Path(spec.origin).with_name("lib").joinpath("libtorch_cuda.so").exists()


def _plural(number: int, noun: str, ending: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{ending}"
