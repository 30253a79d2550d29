"""Direct I/O: threads that read and write a file without the page cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from engine.errors import RunError

BLOCK = 4 * 2**20
"""Bytes of one request. Larger tensors are split: a disk is fast with several requests queued."""

THREADS = 4


@dataclass
class Transfer:
    """A read or write in progress. Do not use ``memory`` before ``wait`` has returned."""

    file: Path
    verb: str
    memory: Tensor
    blocks: list[Future[None]] = field(default_factory=list)

    def wait(self) -> None:
        """Wait until the transfer is complete. Raises RunError, with the system's reason."""
        try:
            for block in self.blocks:
                block.result()
        except OSError as error:
            raise RunError(
                f"{self.file}: {self.verb} failed: {error.strerror}; check the disk"
            ) from error


class DirectFile:
    """Reads and writes the file ``path`` in threads that do not hold the interpreter's lock.

    Transfers are direct (O_DIRECT) if the file system supports it: otherwise the page cache would
    take the memory that offloading frees. Offsets, lengths and memory must be whole pages (see
    ``engine/nvme/page_buffers.py``).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open(path)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="nvme")

    def read(self, offset: int, memory: Tensor) -> Transfer:
        """Start to read from byte ``offset`` of the file on into ``memory``, uint8 [bytes]."""
        return self._begin("read", self._read, offset, memory)

    def write(self, offset: int, memory: Tensor) -> Transfer:
        """Start to write ``memory``, uint8 [bytes], from byte ``offset`` of the file on."""
        return self._begin("write", self._write, offset, memory)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        os.close(self._descriptor)

    def _begin(
        self, verb: str, move: Callable[[int, memoryview], None], offset: int, memory: Tensor
    ) -> Transfer:
        transfer, view = Transfer(self.path, verb, memory), memory.numpy().data
        for start in range(0, len(view), BLOCK):
            piece = view[start : start + BLOCK]
            transfer.blocks.append(self._threads.submit(move, offset + start, piece))
        return transfer

    def _read(self, offset: int, memory: memoryview) -> None:
        done = 0
        while done < len(memory):
            count = os.preadv(self._descriptor, [memory[done:]], offset + done)
            if count == 0:
                raise OSError(0, "the file was truncated")
            done += count

    def _write(self, offset: int, memory: memoryview) -> None:
        done = 0
        while done < len(memory):
            done += os.pwritev(self._descriptor, [memory[done:]], offset + done)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | getattr(os, "O_DIRECT", 0))
    except OSError:  # not every file system supports O_DIRECT
        return os.open(path, os.O_RDWR)
