"""Prefetch buffers: while one group of parameters is updated, the next group is read from the disk
and the previous group is written back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from engine.nvme.page_buffers import Buffer

BUFFERS = 3
"""The number of buffers: one for reading, one for the update and one for writing."""

SHARES = BUFFERS + 1
"""A buffer is one share of the memory. The last share is for tensors that are created during an
update: an optimizer's first states."""


class GroupStorage(Protocol):
    """Stores one part of every group, such as its optimizer states, on a disk. Transfers that
    ``take`` and ``put`` start are complete after ``wait``."""

    def take(self, group: int, buffer: Buffer) -> None:
        """Start to read the group into ``buffer``, if the group was written before."""

    def put(self, group: int, buffer: Buffer) -> None:
        """Start to write the group from ``buffer``."""

    def wait(self) -> None:
        """Wait until all transfers are complete."""


class PrefetchBuffers:
    """Buffers for ``groups`` groups of at most ``size`` bytes each. A group is on the disk or in a
    buffer."""

    def __init__(self, storages: Sequence[GroupStorage], groups: int, size: int) -> None:
        self._storages, self._groups = storages, groups
        self._free = [Buffer(size) for _ in range(min(BUFFERS, groups))]
        self._held: dict[int, Buffer] = {}
        self._writing: list[Buffer] = []

    def __iter__(self) -> Iterator[tuple[int, Buffer]]:
        """Read the groups into buffers, yield each group's number and buffer in order, and write
        each buffer back afterwards.

        At the end group 0 is prefetched for the next pass over the groups.
        """
        self._put_all(but=0)
        for group in range(self._groups):
            self._take(group)
            self.wait()
            if group:
                self._put(group - 1)
            if group + 1 < self._groups:
                self._take(group + 1)
            yield group, self._held[group]
        if self._groups:
            self.wait()
            self._put(self._groups - 1)
            self._take(0)

    def fetch(self, group: int) -> Buffer:
        """Read ``group`` into a buffer, unless it is in one, and return the buffer. It is valid
        until the next call."""
        if group not in self._held:
            self._put_all()
            self._take(group)
        self.wait()
        return self._held[group]

    def wait(self) -> None:
        """Wait until all transfers are complete, and release the buffers that were written."""
        for storage in self._storages:
            storage.wait()
        self._free += self._writing
        self._writing = []

    def _put_all(self, but: int | None = None) -> None:
        self.wait()
        for group in [group for group in self._held if group != but]:
            self._put(group)

    def _take(self, group: int) -> None:
        if group in self._held:
            return
        if not self._free:
            self.wait()
        self._held[group] = self._free.pop()
        for storage in self._storages:
            storage.take(group, self._held[group])

    def _put(self, group: int) -> None:
        buffer = self._held.pop(group)
        self._writing.append(buffer)
        for storage in self._storages:
            storage.put(group, buffer)
