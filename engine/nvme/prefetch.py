"""Prefetch buffers: while one group is updated, the next is read and the last is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from engine.nvme.page_buffers import Buffer

BUFFERS = 3
"""One for reading, one for the update and one for writing."""

SHARES = BUFFERS + 1
"""A buffer is one share of the memory. The last share is for tensors that are created during an
update: an optimizer's first states."""


class GroupStorage(Protocol):
    """A part of each group, on a disk. Transfers that it starts are complete after ``wait``."""

    def take(self, group: int, buffer: Buffer) -> None:
        """Start to read the group into ``buffer``, if it was written before."""

    def put(self, group: int, buffer: Buffer) -> None:
        """Start to write the group from ``buffer``."""

    def wait(self) -> None:
        """Wait until all transfers are complete."""


class PrefetchBuffers:
    """Buffers for ``groups`` of at most ``size`` bytes. A group is on the disk or in a buffer."""

    def __init__(self, storages: Sequence[GroupStorage], groups: int, size: int) -> None:
        self._storages, self._groups = storages, groups
        self._free = [Buffer(size) for _ in range(min(BUFFERS, groups))]
        self._held: dict[int, Buffer] = {}
        self._writing: list[Buffer] = []

    def __iter__(self) -> Iterator[tuple[int, Buffer]]:
        """Yield each group and its buffer, in order, and write the buffer back afterwards.

        The first group is prefetched at the end, for the next iteration.
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
        """Read one group, unless it is in a buffer. The buffer is valid until the next call."""
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
