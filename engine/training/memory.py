"""The memory of this process: its peak, and reuse of freed memory."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from models.parallel.tuning import KEPT_BYTES

if TYPE_CHECKING:
    import torch


# Parameters of mallopt in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Make malloc keep freed blocks of up to KEPT_BYTES for reuse. Does nothing without glibc.

    By default glibc returns free memory at the end of its heap to the system, and the next step
    allocates it again: the kernel must map and clear every page. Larger blocks are still returned:
    alignment would make the next block of their size not fit into the hole. See mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, -1)


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory so far, bytes: allocated by torch on a CUDA device, resident in this
    process otherwise."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return the peak resident set of this process, bytes.

    On Linux getrusage includes memory of the parent at the fork. So the kernel's high-water mark
    of this address space is preferred.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
