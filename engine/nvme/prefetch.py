"""Groups that pass through a few buffers: the next is read and the last is written meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from engine.nvme.page_buffers import Buffer

BUFFERS = 3
"""One is read into, one is worked on and one is written from."""

SHARES = BUFFERS + 1
"""Of all memory a buffer is one share. The last is for what is made while a group is worked on: the
first states, by an optimizer."""


class GroupSource(Protocol):
    """A part of each group, on a disk. What it begins lasts until it is waited for."""

    def take(self, group: int, buffer: Buffer) -> None:
        """Begin to read what was put, if anything was."""

    def put(self, group: int, buffer: Buffer) -> None:
        """Begin to write."""

    def wait(self) -> None: ...


class PrefetchBuffers:
    """``groups`` of at most ``size`` bytes. Each is on the disk or in one of the buffers."""

    def __init__(self, sources: Sequence[GroupSource], groups: int, size: int) -> None:
        self._sources, self._groups = sources, groups
        self._free = [Buffer(size) for _ in range(min(BUFFERS, groups))]
        self._held: dict[int, Buffer] = {}
        self._writing: list[Buffer] = []

    def __iter__(self) -> Iterator[tuple[int, Buffer]]:
        """Each group, in order; what is done to it until the next is asked for is kept.

        The first is read again at the end, for the next time.
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
        """One group, until the next call of anything here."""
        if group not in self._held:
            self._put_all()
            self._take(group)
        self.wait()
        return self._held[group]

    def wait(self) -> None:
        """Until nothing is on its way."""
        for source in self._sources:
            source.wait()
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
        for source in self._sources:
            source.take(group, self._held[group])

    def _put(self, group: int) -> None:
        buffer = self._held.pop(group)
        self._writing.append(buffer)
        for source in self._sources:
            source.put(group, buffer)
