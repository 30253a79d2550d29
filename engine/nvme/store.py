"""Slots of bytes on a disk, for what is read, changed and written back once a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from engine import discover
from engine.errors import RunError, UserError
from engine.nvme.disk import Disk
from engine.nvme.page_buffers import LINE, Buffer

KINDS = ("tensornvme", "threads")
"""Rooms of ``engine.nvme.stores``, the preferred one first."""


class Transfers(Protocol):
    """How a kind of store moves slots. Slot n has as many bytes as it was opened with."""

    def read(self, slot: int, buffer: Buffer) -> None:
        """Begin to read the slot, which was written before, into the buffer's first bytes. The
        slot need not be readable again before it is written again."""

    def write(self, slot: int, buffer: Buffer) -> None:
        """Begin to write it."""

    def wait(self) -> None:
        """Until all that was begun is done. Raises RunError, if it can tell."""

    def close(self) -> None: ...


class Store:
    """What is put into a slot is taken out of it again, once.

    Both begin at once and last until ``wait``. Each slot carries a stamp at either end, told by
    slot and by how often it was written: a transfer that was cut short, went elsewhere or failed
    in silence is found out when the slot is taken.
    """

    def __init__(self, transfers: Transfers, disk: Disk, path: Path, sizes: Sequence[int]) -> None:
        """``sizes``: bytes of each slot, of which the first and the last line are the store's."""
        self._transfers, self._disk, self._path, self._sizes = transfers, disk, path, sizes
        self._written = [0] * len(sizes)
        self._taken: list[tuple[int, Buffer]] = []

    def put(self, slot: int, buffer: Buffer) -> None:
        """Begin to write the slot from the beginning of ``buffer``."""
        self._written[slot] += 1
        for stamp in self._stamps(slot, buffer):
            stamp.copy_(self._expected(slot))
        self._transfers.write(slot, buffer)

    def take(self, slot: int, buffer: Buffer) -> None:
        """Begin to read the slot into the beginning of ``buffer``, if anything was put into it."""
        if not self._written[slot]:
            return
        for stamp in self._stamps(slot, buffer):
            stamp.zero_()
        self._taken.append((slot, buffer))
        self._transfers.read(slot, buffer)

    def wait(self) -> None:
        """Until all is done. Raises RunError where it was not, or the disk lost what it had."""
        self._transfers.wait()
        reads, self._taken = self._taken, []
        for slot, buffer in reads:
            expected = self._expected(slot)
            if not all(torch.equal(stamp, expected) for stamp in self._stamps(slot, buffer)):
                raise RunError(
                    f"{self._path}: part {slot} is not what was written to it; "
                    "is the disk full or failing?"
                )

    def check(self) -> None:
        """Raises RunError where the file was taken away: it would end with this process."""
        self._disk.check()

    def close(self) -> None:
        self._transfers.close()

    def _stamps(self, slot: int, buffer: Buffer) -> list[torch.Tensor]:
        ends = (0, self._sizes[slot] - LINE)
        return [buffer.tensor(start, 2, torch.int64) for start in ends]

    def _expected(self, slot: int) -> torch.Tensor:
        return torch.tensor([slot + 1, self._written[slot]])


def open_store(disk: Disk, sizes: Sequence[int], kind: str | None = None) -> Store:
    """A store of ``kind``, or of the first that works here.

    Raises UserError where ``kind`` does not work here, or the disk is too small.
    """
    for name in (kind,) if kind else KINDS:
        module = discover.load("engine.nvme.stores", name)
        problem: str | None = module.problem()
        if problem is None:
            path = disk.reserve("states", sum(sizes))
            return Store(module.open_transfers(path, sizes), disk, path, sizes)
    raise UserError(f"zero.nvme_store={name!r} {problem}")
