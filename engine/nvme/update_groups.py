"""Groups of parameters of bounded size, which an optimizer updates one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.nvme.page_buffers import LINE, PAGE
from engine.nvme.prefetch import SHARES
from models.parallel.shard import round_up

ALIGNMENT = PAGE
"""Slices start at multiples of this many entries: at whole pages, whatever the dtype, and at block
boundaries of vectorised loops. So a slice is updated by the same instructions as in the whole
parameter, which gives the same bits."""


@dataclass(kw_only=True)
class ParameterSlice:
    """Entries [start, stop) of a flattened parameter."""

    name: str
    parameter: nn.Parameter
    group: int
    """Number of the parameter group."""
    start: int
    stop: int
    first: int = 0
    """Offset of the states in the buffer, bytes."""
    weight: int = 0
    """Offset of the entries in the buffer, bytes, if the parameter is offloaded too."""
    states: dict[str, tuple[int, torch.dtype]] = field(default_factory=dict)
    """State -> offset in the buffer and dtype; filled when the states are created or loaded."""
    rest: dict[str, Any] = field(default_factory=dict)
    """States of other shapes, such as the number of steps, which stay in memory."""

    @property
    def entries(self) -> int:
        """Return the number of entries."""
        return self.stop - self.start

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the parameter's shape if the slice is all of it, else [entries]."""
        complete = self.entries == self.parameter.numel()
        return tuple(self.parameter.shape) if complete else (self.entries,)

    def of(self, tensor: Tensor) -> Tensor:
        """Return this slice of a tensor of the parameter's shape, as a view."""
        return tensor.detach().view(-1)[self.start : self.stop].view(self.shape)


@dataclass(frozen=True, kw_only=True)
class GroupBudget:
    """The memory for one group, and how it is divided among the group's slices."""

    size: int
    """Bytes of a buffer."""
    states: int
    """Number of states of a parameter's size."""
    weights: bool = False
    """True if parameters are offloaded too."""
    divisible: bool = True
    """True if the optimizer updates each entry independently, so that parameters can be sliced."""

    def slot_bytes(self, pieces: Iterable[ParameterSlice]) -> int:
        """Return the bytes of a group's slot on the disk: the states of ``pieces``, and a stamp at
        either end."""
        return round_up(2 * LINE + sum(self._states(p.entries, _size(p)) for p in pieces), PAGE)

    def slice_bytes(self, entries: int, itemsize: int) -> int:
        """Return the bytes of a slice in a buffer: states are aligned to cache lines, weights to
        pages."""
        weights = round_up(entries * itemsize, PAGE) if self.weights else 0
        return self._states(entries, itemsize) + weights

    def max_entries(self, free: int, itemsize: int) -> int:
        """Return the maximum entries of a slice that fits into ``free`` bytes; 0 if slicing is
        impossible."""
        an_entry = itemsize * (self.states + self.weights)
        return free // an_entry // ALIGNMENT * ALIGNMENT if self.divisible else 0

    @property
    def empty(self) -> int:
        """Return the bytes that a group without slices has free."""
        return self.size - PAGE - 2 * LINE

    def assign_offsets(self, pieces: list[ParameterSlice]) -> None:
        """Set the offsets at which ``pieces``, the slices of one group, lie in the buffer."""
        first, weight = LINE, self.slot_bytes(pieces)
        for piece in pieces:
            piece.first, piece.weight = first, weight
            first += self._states(piece.entries, _size(piece))
            weight += round_up(piece.entries * _size(piece), PAGE)
        assert (weight if self.weights else self.slot_bytes(pieces)) <= self.size

    def state_offset(self, piece: ParameterSlice, number: int) -> int:
        """Return the buffer offset of state ``number`` (from 0) of the slice ``piece``."""
        assert number < self.states, f"{piece.name} has more than {self.states} states"
        return piece.first + number * round_up(piece.entries * _size(piece), LINE)

    def _states(self, entries: int, itemsize: int) -> int:
        return self.states * round_up(entries * itemsize, LINE)


def group_slices(
    slices: Iterable[ParameterSlice], budget: GroupBudget
) -> list[list[ParameterSlice]]:
    """Divide parameters, in order, into as few groups as possible, and cut a parameter into slices
    if it does not fit into the current group.

    Raises UserError if a parameter that cannot be sliced does not fit.
    """
    groups: list[list[ParameterSlice]] = [[]]
    free = budget.empty
    for whole in slices:
        for piece in _split(whole, budget, free):
            needed = budget.slice_bytes(piece.entries, _size(piece))
            if needed > free:
                groups.append([])
                free = budget.empty
            groups[-1].append(piece)
            free -= needed
    groups = [group for group in groups if group]
    for group in groups:
        budget.assign_offsets(group)
    return groups


def _split(piece: ParameterSlice, budget: GroupBudget, free: int) -> Iterator[ParameterSlice]:
    """Cut a parameter into slices and yield them: the first slice has at most ``free`` bytes, each
    further slice fits into an empty group."""
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
    undivided = "" if budget.divisible else ", which is updated as a whole"
    return f"zero.nvme_buffer must be at least {SHARES * least} for {piece.name}{undivided}"


def _size(piece: ParameterSlice) -> int:
    return piece.parameter.itemsize
