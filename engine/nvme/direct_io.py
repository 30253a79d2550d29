"""A file of fixed size, read and written past the page cache by threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from engine.errors import RunError

BLOCK = 4 * 2**20
"""Bytes of one transfer. Larger tensors are cut: a disk is fast when several are under way."""

THREADS = 4


@dataclass
class Transfer:
    """Something on its way to or from a file; ``memory`` must not be touched until it is there."""

    file: Path
    verb: str
    memory: Tensor
    blocks: list[Future[None]] = field(default_factory=list)

    def wait(self) -> None:
        """Until all of it is there. Raises RunError with the system's reason where it cannot be."""
        try:
            for block in self.blocks:
                block.result()
        except OSError as error:
            raise RunError(f"{self.file}: cannot {self.verb} it: {error.strerror}") from error


class DirectFile:
    """Threads that read and write ``path``; the interpreter is free meanwhile.

    Direct where the file system can (O_DIRECT), so that what is offloaded does not come back as
    page cache. Offsets, lengths and memory are whole pages (see ``engine/nvme/page_buffers.py``).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open(path)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="nvme")

    def read(self, offset: int, memory: Tensor) -> Transfer:
        """Begin to fill ``memory`` [bytes]."""
        return self._begin("read", self._read, offset, memory)

    def write(self, offset: int, memory: Tensor) -> Transfer:
        """Begin to write ``memory`` [bytes]."""
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
                raise OSError(0, "it has become shorter")
            done += count

    def _write(self, offset: int, memory: memoryview) -> None:
        done = 0
        while done < len(memory):
            done += os.pwritev(self._descriptor, [memory[done:]], offset + done)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | getattr(os, "O_DIRECT", 0))
    except OSError:  # not every file system has it
        return os.open(path, os.O_RDWR)
