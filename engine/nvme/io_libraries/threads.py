"""Transfers of slots by threads, which work on every machine and report errors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from engine.nvme.direct_io import DirectFile, Transfer
from engine.nvme.page_buffers import Buffer


class ThreadTransfers:
    """Transfers of slots by threads; the slots follow one another in the file."""

    def __init__(self, path: Path, sizes: Sequence[int]) -> None:
        self._file, self._sizes = DirectFile(path), sizes
        self._offsets = [0, *accumulate(sizes)]
        self._begun: list[Transfer] = []

    def read(self, slot: int, buffer: Buffer) -> None:
        memory = buffer.tensor(0, self._sizes[slot])
        self._begun.append(self._file.read(self._offsets[slot], memory))

    def write(self, slot: int, buffer: Buffer) -> None:
        memory = buffer.tensor(0, self._sizes[slot])
        self._begun.append(self._file.write(self._offsets[slot], memory))

    def wait(self) -> None:
        begun, self._begun = self._begun, []
        for transfer in begun:
            transfer.wait()

    def close(self) -> None:
        self._file.close()


def problem() -> str | None:
    """Return None: threads work on every machine."""
    return None


def open_transfers(path: Path, sizes: Sequence[int]) -> ThreadTransfers:
    """Open ``path`` as a file of slots of ``sizes`` bytes."""
    return ThreadTransfers(path, sizes)
