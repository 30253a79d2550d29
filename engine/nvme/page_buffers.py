"""Host memory that a disk reads into and writes from without a copy: whole pages."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

PAGE = 4096
"""Bytes that direct transfers are multiples of: in memory, in the file and in length."""

LARGEST = 2**31 - PAGE
"""Bytes that Linux moves in one transfer."""

LINE = 64
"""Bytes of a cache line: where tensors in a buffer begin."""


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class Buffer:
    """``size`` bytes, a multiple of a page, used again and again."""

    def __init__(self, size: int) -> None:
        assert size % PAGE == 0, f"{size} bytes are not whole pages"
        self.size = size
        self._pages = mmap.mmap(-1, max(size, PAGE))

    def tensor(self, start: int, count: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """``count`` entries from byte ``start`` on [count]; its storage is these bytes alone."""
        if count == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._pages, dtype=dtype, count=count, offset=start)


def empty_pages(size: int, *, pin: bool = False) -> Tensor:
    """Memory [size] of bytes, beginning at a page, that lives as long as the tensor; pinned, a
    copy to a GPU takes half the time."""
    held = torch.empty(size + PAGE, dtype=torch.uint8, pin_memory=pin)
    return held.narrow(0, -held.data_ptr() % PAGE, size)
