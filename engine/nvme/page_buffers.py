"""Page-aligned host memory, for direct I/O without copies."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

PAGE = 4096
"""Alignment of direct I/O in bytes: of memory addresses, file offsets and lengths."""

LARGEST = 2**31 - PAGE
"""Maximum bytes of one transfer on Linux."""

LINE = 64
"""Bytes of a cache line: the alignment of tensors in a buffer."""


class Buffer:
    """``size`` bytes of reusable memory, whole pages."""

    def __init__(self, size: int) -> None:
        assert size % PAGE == 0, f"{size} bytes are not whole pages"
        self.size = size
        self._pages = mmap.mmap(-1, max(size, PAGE))

    def tensor(self, start: int, count: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return a view [count] of the memory from byte ``start`` on. The view's storage is only
        these entries, not the whole buffer."""
        if count == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._pages, dtype=dtype, count=count, offset=start)


def empty_pages(size: int, *, pin: bool = False) -> Tensor:
    """Allocate page-aligned memory, uint8 [size], which is freed with the returned tensor. ``pin``:
    pin the memory, which halves the time of a copy to a GPU."""
    held = torch.empty(size + PAGE, dtype=torch.uint8, pin_memory=pin)
    return held.narrow(0, -held.data_ptr() % PAGE, size)
