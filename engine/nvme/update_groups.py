"""Parameters in groups of bounded size: what an optimizer updates at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.nvme.page_buffers import LINE, PAGE, round_up
from engine.nvme.prefetch import SHARES

ALIGNMENT = PAGE
"""Entries that pieces are multiples of: whole pages, whatever their type, and the same blocks of a
vectorised loop as in the whole parameter, so that the same instructions give the same bits."""


@dataclass(kw_only=True)
class ParameterSlice:
    """Entries [start, stop) of a parameter, flattened; all of it keeps its shape.

    ``group``: the number of its parameter group. ``states``: by name, where in its buffer and of
    what type each is, known once there are any. ``rest``: states of other shapes, which stay in
    memory, such as the number of steps. ``first``: where in the buffer its states begin, and
    ``weight``: where its entries are, if they are offloaded too.
    """

    name: str
    parameter: nn.Parameter
    group: int
    start: int
    stop: int
    first: int = 0
    weight: int = 0
    states: dict[str, tuple[int, torch.dtype]] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        return self.stop - self.start

    @property
    def shape(self) -> tuple[int, ...]:
        whole = self.entries == self.parameter.numel()
        return tuple(self.parameter.shape) if whole else (self.entries,)

    def of(self, tensor: Tensor) -> Tensor:
        """Its part of a tensor that is shaped like the parameter: a view."""
        return tensor.detach().view(-1)[self.start : self.stop].view(self.shape)


@dataclass(frozen=True, kw_only=True)
class GroupBudget:
    """What there is for a group: ``size`` bytes of memory.

    ``states``: tensors of its size that are kept beside a parameter. ``weights``: whether it is
    streamed too. ``divisible``: whether updates are by entry, so that parameters may be cut.
    """

    size: int
    states: int
    weights: bool = False
    divisible: bool = True

    def slot_bytes(self, pieces: Iterable[ParameterSlice]) -> int:
        """Bytes on the disk for the states of a group, with a line for a stamp at either end."""
        return round_up(2 * LINE + sum(self._states(p.entries, _size(p)) for p in pieces), PAGE)

    def slice_bytes(self, entries: int, itemsize: int) -> int:
        """Bytes of a piece: states begin at cache lines, weights at pages."""
        weights = round_up(entries * itemsize, PAGE) if self.weights else 0
        return self._states(entries, itemsize) + weights

    def max_entries(self, free: int, itemsize: int) -> int:
        """The most entries that a piece can have in ``free`` bytes, if it is cut."""
        an_entry = itemsize * (self.states + self.weights)
        return free // an_entry // ALIGNMENT * ALIGNMENT if self.divisible else 0

    @property
    def empty(self) -> int:
        """Bytes for pieces, of a group that has none."""
        return self.size - PAGE - 2 * LINE

    def assign_offsets(self, pieces: list[ParameterSlice]) -> None:
        """Settle where everything of a group lies."""
        first, weight = LINE, self.slot_bytes(pieces)
        for piece in pieces:
            piece.first, piece.weight = first, weight
            first += self._states(piece.entries, _size(piece))
            weight += round_up(piece.entries * _size(piece), PAGE)
        assert (weight if self.weights else self.slot_bytes(pieces)) <= self.size

    def state_offset(self, piece: ParameterSlice, number: int) -> int:
        """Where in the buffer a piece has its state of that number, from 0."""
        assert number < self.states, f"{piece.name} has more than {self.states} states"
        return piece.first + number * round_up(piece.entries * _size(piece), LINE)

    def _states(self, entries: int, itemsize: int) -> int:
        return self.states * round_up(entries * itemsize, LINE)


def group_slices(
    slices: Iterable[ParameterSlice], budget: GroupBudget
) -> list[list[ParameterSlice]]:
    """The pieces in order, in as few groups as hold them, cut where they have to be.

    Raises UserError where one that cannot be cut does not fit.
    """
    groups: list[list[ParameterSlice]] = [[]]
    free = budget.empty
    for whole in slices:
        for piece in _split(whole, budget, free):
            taken = budget.slice_bytes(piece.entries, _size(piece))
            if taken > free:
                groups.append([])
                free = budget.empty
            groups[-1].append(piece)
            free -= taken
    groups = [group for group in groups if group]
    for group in groups:
        budget.assign_offsets(group)
    return groups


def _split(piece: ParameterSlice, budget: GroupBudget, free: int) -> Iterator[ParameterSlice]:
    """Parts of a piece: as much as fits into ``free`` bytes, then into one empty group each."""
    start, size = piece.start, _size(piece)
    while budget.slice_bytes(piece.stop - start, size) > free:
        entries = budget.max_entries(free, size)
        if entries:
            yield replace(piece, start=start, stop=start + entries, states={}, rest={})
            start += entries
        elif free == budget.empty:
            raise UserError(_too_large(piece, budget))
        free = budget.empty
    yield replace(piece, start=start, states={}, rest={})


def _too_large(piece: ParameterSlice, budget: GroupBudget) -> str:
    entries = ALIGNMENT if budget.divisible else piece.entries
    least = round_up(budget.slice_bytes(entries, _size(piece)) + budget.size - budget.empty, PAGE)
    whole = "" if budget.divisible else ", which is updated as a whole"
    return f"zero.nvme_buffer must be at least {SHARES * least} for {piece.name}{whole}"


def _size(piece: ParameterSlice) -> int:
    return piece.parameter.itemsize
