"""The memory of this process: the most it has held, and keeping what it has."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from models.parallel.tuning import KEPT_BYTES

if TYPE_CHECKING:
    import torch


# Names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let blocks of up to KEPT_BYTES stay with the process when they are freed (glibc; elsewhere
    nothing is done).

    By default it gives back what is free at the end of its heap, and a step takes the same memory
    again: every page is faulted in and cleared anew. Larger blocks still are: kept, they would
    leave holes that none of their size fits in once it is aligned. See mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, -1)


def peak_bytes(device: torch.device) -> int:
    """Peak bytes so far: allocated on a CUDA device by torch, else resident in this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Peak resident set of this process, bytes.

    On Linux getrusage also counts what the parent held when it forked, so the kernel's own
    high-water mark of this address space goes first.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
