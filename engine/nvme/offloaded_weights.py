"""Weights that stay on a disk between uses, each read ahead of where it is used.

Read several times for each time they are written, so by our own threads: what TensorNVMe has read,
it forgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from engine.nvme.direct_io import DirectFile, Transfer
from engine.nvme.disk import Disk
from engine.nvme.page_buffers import PAGE, Buffer, empty_pages, round_up
from engine.nvme.update_groups import ParameterSlice


@dataclass(frozen=True)
class FileExtent:
    """Bytes of a weight in the file. Keeps the weight, whose id is its key."""

    weight: Tensor
    offset: int

    @property
    def size(self) -> int:
        return round_up(self.weight.numel() * self.weight.itemsize, PAGE)


@dataclass(kw_only=True)
class WeightsOnDisk:
    """``prefetch_bytes``: bytes that may be read before they are asked for. ``pin``: whether they
    go on to a GPU.

    Which weight is next is what came after the last two the time before: so it knows forward from
    backward, and a pipeline's schedule, after one step.
    """

    disk: Disk
    prefetch_bytes: int
    pin: bool = False
    _extents: dict[int, FileExtent] = field(default_factory=dict)
    _file: DirectFile | None = None
    _next: dict[tuple[int, int], int] = field(default_factory=dict)
    _last: tuple[int, int] = (0, 0)
    _reading: dict[int, Transfer] = field(default_factory=dict)

    def add(self, weight: nn.Parameter) -> None:
        """Keep a weight, of whose shape and type the parameter is, and no more. All are known
        before the first is put."""
        assert self._file is None, "the file has its size"
        end = sum(extent.size for extent in self._extents.values())
        self._extents[id(weight)] = FileExtent(weight, end)

    def holds(self, weight: Tensor) -> bool:
        return id(weight) in self._extents

    def get(self, weight: Tensor) -> Tensor:
        """Its values, in host memory that lives as long as they are used."""
        number = id(weight)
        # What is read ahead differs from time to time: a checkpoint that replays a forward pass
        # must not see it.
        with _disable_current_modes():
            transfer = self._reading.pop(number, None) or self._begin(number)
            self._next[self._last] = number
            self._last = self._last[1], number
            self.prefetch()
            transfer.wait()
            memory = transfer.memory[: weight.numel() * weight.itemsize]
            return memory.view(weight.dtype).view(weight.shape)

    def put(self, weight: Tensor, values: Tensor) -> None:
        """Set its values. Raises UserError where the disk is too small, RunError where it fails."""
        extent = self._extents[id(weight)]
        memory = empty_pages(extent.size)
        memory[: values.numel() * values.itemsize] = values.reshape(-1).view(torch.uint8)
        self._reading.pop(id(weight), None)
        self.file.write(extent.offset, memory).wait()

    def prefetch(self) -> None:
        """Begin to read what will probably be asked for next."""
        last, free, next_number = self._last, self.prefetch_bytes, list[int]()
        while (number := self._next.get(last)) is not None and number not in next_number:
            free -= self._extents[number].size
            if free < 0 and next_number:
                break
            next_number.append(number)
            last = last[1], number
        reading = self._reading
        self._reading = {n: reading.get(n) or self._begin(n) for n in next_number}

    def drop_prefetched(self) -> None:
        """What was read ahead is about to change."""
        for transfer in self._reading.values():
            transfer.wait()
        self._reading.clear()

    @property
    def file(self) -> DirectFile:
        if self._file is None:
            size = sum(extent.size for extent in self._extents.values())
            self._file = DirectFile(self.disk.reserve("weights", size))
        return self._file

    def close(self) -> None:
        if self._file:
            self._file.close()

    def group_source(self, groups: Sequence[Sequence[ParameterSlice]]) -> WeightsGroupSource:
        return WeightsGroupSource(self, groups)

    def transfer(self, piece: ParameterSlice, buffer: Buffer, *, write: bool) -> Transfer:
        """Begin to move a piece's entries to or from its group's buffer."""
        size = piece.parameter.itemsize
        memory = buffer.tensor(piece.weight, round_up(piece.entries * size, PAGE))
        move = self.file.write if write else self.file.read
        return move(self._extents[id(piece.parameter)].offset + piece.start * size, memory)

    def _begin(self, number: int) -> Transfer:
        extent = self._extents[number]
        return self.file.read(extent.offset, empty_pages(extent.size, pin=self.pin))


class WeightsGroupSource:
    """The weights of groups, for the optimizer."""

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
