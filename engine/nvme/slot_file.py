"""Slots of bytes on a disk, each read, changed and written back once a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from engine import discover
from engine.errors import RunError, UserError
from engine.nvme.disk import Disk
from engine.nvme.page_buffers import LINE, Buffer

LIBRARIES = ("tensornvme", "threads")
"""Modules of ``engine.nvme.io_libraries``, the preferred one first."""


class Transfers(Protocol):
    """Transfers of slots by an I/O library. The size of each slot is fixed when the file is
    opened."""

    def read(self, slot: int, buffer: Buffer) -> None:
        """Start to read the slot, which was written before, into the first bytes of the buffer.
        A slot may be read once per write."""

    def write(self, slot: int, buffer: Buffer) -> None:
        """Start to write the slot from the first bytes of the buffer."""

    def wait(self) -> None:
        """Wait until all transfers are complete. Raises RunError for errors that are reported."""

    def close(self) -> None:
        """Close the file."""


class SlotFile:
    """Slots on a disk. A slot is read at most once per write.

    ``put`` and ``take`` start transfers, and ``wait`` completes them. A slot has a stamp at both
    ends, made of its number and its count of writes. The stamps are checked after a read: they
    reveal a transfer that was truncated, misplaced or failed without an error.
    """

    def __init__(self, transfers: Transfers, disk: Disk, path: Path, sizes: Sequence[int]) -> None:
        """Divide the file ``path`` into slots of ``sizes`` bytes. The first and the last cache line
        of a slot hold its stamps."""
        self._transfers, self._disk, self._path, self._sizes = transfers, disk, path, sizes
        self._written = [0] * len(sizes)
        self._taken: list[tuple[int, Buffer]] = []

    def put(self, slot: int, buffer: Buffer) -> None:
        """Start to write the slot from the first bytes of ``buffer``."""
        self._written[slot] += 1
        for stamp in self._stamps(slot, buffer):
            stamp.copy_(self._expected(slot))
        self._transfers.write(slot, buffer)

    def take(self, slot: int, buffer: Buffer) -> None:
        """Start to read the slot into the first bytes of ``buffer``, if the slot was written
        before."""
        if not self._written[slot]:
            return
        for stamp in self._stamps(slot, buffer):
            stamp.zero_()
        self._taken.append((slot, buffer))
        self._transfers.read(slot, buffer)

    def wait(self) -> None:
        """Wait until all transfers are complete. Raises RunError if one failed or a slot is
        corrupt."""
        self._transfers.wait()
        reads, self._taken = self._taken, []
        for slot, buffer in reads:
            expected = self._expected(slot)
            if not all(torch.equal(stamp, expected) for stamp in self._stamps(slot, buffer)):
                raise RunError(
                    f"{self._path}: part {slot} is corrupt: the disk returned other data than "
                    "was written; check whether it is full or failing"
                )

    def check(self) -> None:
        """Check that the file was not removed. If it was, raise RunError: its data would be lost at
        the end of this process."""
        self._disk.check()

    def close(self) -> None:
        """Close the file."""
        self._transfers.close()

    def _stamps(self, slot: int, buffer: Buffer) -> list[torch.Tensor]:
        ends = (0, self._sizes[slot] - LINE)
        return [buffer.tensor(start, 2, torch.int64) for start in ends]

    def _expected(self, slot: int) -> torch.Tensor:
        return torch.tensor([slot + 1, self._written[slot]])


def open_slot_file(disk: Disk, sizes: Sequence[int], library: str | None = None) -> SlotFile:
    """Open a slot file. ``library``: None for the first of LIBRARIES that works on this machine.

    Raises UserError if ``library`` does not work on this machine, or the disk is too small.
    """
    for name in (library,) if library else LIBRARIES:
        module = discover.load("engine.nvme.io_libraries", name)
        problem: str | None = module.problem()
        if problem is None:
            path = disk.reserve("states", sum(sizes))
            return SlotFile(module.open_transfers(path, sizes), disk, path, sizes)
    raise UserError(f"zero.nvme_store={name!r} {problem}")
