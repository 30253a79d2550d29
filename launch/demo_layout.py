"""The layout of the demo: it suits the machine. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

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
