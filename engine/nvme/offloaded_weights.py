"""Weights on a disk, prefetched before they are used.

A weight is read several times per write. TensorNVMe drops a tensor that it has read, so threads
read and write the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from engine.nvme.direct_io import DirectFile, Transfer
from engine.nvme.disk import Disk
from engine.nvme.page_buffers import PAGE, Buffer, empty_pages
from engine.nvme.update_groups import ParameterSlice
from models.parallel.shard import round_up


@dataclass(frozen=True)
class FileExtent:
    """The place of a weight in the file of weights."""

    weight: Tensor
    """Referenced here because its id is the key: an id is unique only while the object exists."""
    offset: int

    @property
    def size(self) -> int:
        """Return the bytes of the extent, rounded up to whole pages."""
        return round_up(self.weight.numel() * self.weight.itemsize, PAGE)


@dataclass(kw_only=True)
class WeightsOnDisk:
    """The weights of a rank in one file on a disk.

    Prefetching predicts from history: for each pair of weights that were read one after the other,
    it remembers which weight was read next. After one step this history covers forward, backward
    and the pipeline schedule.
    """

    disk: Disk
    prefetch_bytes: int
    """Bytes to read ahead."""
    pin: bool = False
    """Read into pinned memory, for copies to a GPU."""
    _extents: dict[int, FileExtent] = field(default_factory=dict)
    _file: DirectFile | None = None
    _next: dict[tuple[int, int], int] = field(default_factory=dict)
    _last: tuple[int, int] = (0, 0)
    _reading: dict[int, Transfer] = field(default_factory=dict)

    def add(self, weight: nn.Parameter) -> None:
        """Reserve space in the file for ``weight``. All weights are added before the first
        ``put``."""
        assert self._file is None, "the file has its size"
        end = sum(extent.size for extent in self._extents.values())
        self._extents[id(weight)] = FileExtent(weight, end)

    def holds(self, weight: Tensor) -> bool:
        """Return whether the weight is on the disk."""
        return id(weight) in self._extents

    def get(self, weight: Tensor) -> Tensor:
        """Return the weight's values in host memory, and prefetch the next weights."""
        number = id(weight)
        # Prefetching differs between calls: activation checkpointing, which compares a replayed
        # forward pass with the first, must not see its operators.
        with _disable_current_modes():
            transfer = self._reading.pop(number, None) or self._begin(number)
            self._next[self._last] = number
            self._last = self._last[1], number
            self.prefetch()
            transfer.wait()
            memory = transfer.memory[: weight.numel() * weight.itemsize]
            return memory.view(weight.dtype).view(weight.shape)

    def put(self, weight: Tensor, values: Tensor) -> None:
        """Write ``values``, the new values of ``weight``, to the file. Raises UserError if the disk
        is too small, RunError if it fails."""
        extent = self._extents[id(weight)]
        memory = empty_pages(extent.size)
        memory[: values.numel() * values.itemsize] = values.reshape(-1).view(torch.uint8)
        self._reading.pop(id(weight), None)
        self.file.write(extent.offset, memory).wait()

    def prefetch(self) -> None:
        """Start reading the weights that are likely to be used next (at least one)."""
        last, free, predicted = self._last, self.prefetch_bytes, list[int]()
        while (number := self._next.get(last)) is not None and number not in predicted:
            free -= self._extents[number].size
            if free < 0 and predicted:
                break
            predicted.append(number)
            last = last[1], number
        reading = self._reading
        self._reading = {n: reading.get(n) or self._begin(n) for n in predicted}

    def drop_prefetched(self) -> None:
        """Discard all prefetched weights, which are about to change on the disk."""
        for transfer in self._reading.values():
            transfer.wait()
        self._reading.clear()

    @property
    def file(self) -> DirectFile:
        """Return the file, created at the first use. Raises UserError if the disk is too small."""
        if self._file is None:
            size = sum(extent.size for extent in self._extents.values())
            self._file = DirectFile(self.disk.reserve("weights", size))
        return self._file

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file:
            self._file.close()

    def group_storage(self, groups: Sequence[Sequence[ParameterSlice]]) -> WeightsGroupStorage:
        return WeightsGroupStorage(self, groups)

    def transfer(self, piece: ParameterSlice, buffer: Buffer, *, write: bool) -> Transfer:
        """Start to copy the weights of a slice from ``buffer`` to the file (``write``), or back.
        ``buffer``: of the slice's group."""
        size = piece.parameter.itemsize
        memory = buffer.tensor(piece.weight, round_up(piece.entries * size, PAGE))
        move = self.file.write if write else self.file.read
        return move(self._extents[id(piece.parameter)].offset + piece.start * size, memory)

    def _begin(self, number: int) -> Transfer:
        extent = self._extents[number]
        return self.file.read(extent.offset, empty_pages(extent.size, pin=self.pin))


class WeightsGroupStorage:
    """The offloaded weights of each group of parameter slices that are updated together."""

    def __init__(self, weights: WeightsOnDisk, groups: Sequence[Sequence[ParameterSlice]]) -> None:
        self._weights = weights
        self._groups = [[p for p in group if weights.holds(p.parameter)] for group in groups]
        self._begun: list[Transfer] = []

    def take(self, group: int, buffer: Buffer) -> None:
        self._move(group, buffer, write=False)

    def put(self, group: int, buffer: Buffer) -> None:
        self._move(group, buffer, write=True)

    def wait(self) -> None:
        begun, self._begun = self._begun, []
        for transfer in begun:
            transfer.wait()

    def _move(self, group: int, buffer: Buffer, *, write: bool) -> None:
        for piece in self._groups[group]:
            self._begun.append(self._weights.transfer(piece, buffer, write=write))
