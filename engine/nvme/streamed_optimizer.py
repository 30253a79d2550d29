"""An optimizer that streams its states, and offloaded weights, through memory in groups (as in
ZeRO-Infinity, Rajbhandari et al. 2021, section 6).

torch's optimizers update slices of the parameters, which gives the same bits as an optimizer with
all states in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from engine.nvme.offloaded_weights import WeightsOnDisk
from engine.nvme.page_buffers import LARGEST, PAGE, Buffer
from engine.nvme.prefetch import SHARES, GroupStorage, PrefetchBuffers
from engine.nvme.slot_file import SlotFile
from engine.nvme.update_groups import GroupBudget, ParameterSlice, group_slices
from engine.optim.optimizer import StateTensor, in_memory

OptimizerState = Mapping[str, Any]


class StreamedOptimizer:
    """Makes the updates of the optimizer ``inner``, with the states on a disk.

    States of parameters on a GPU stay there: ZeRO does not offload those parameters.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        *,
        states: int,
        divisible: bool,
        memory: int,
        open_slot_file: Callable[[Sequence[int]], SlotFile],
        weights: WeightsOnDisk | None = None,
    ) -> None:
        """Allocate the buffers and open the slot file.

        inner: an optimizer that has not stepped yet.
        states: number of states of a parameter's size that ``inner`` has.
        divisible: True if it updates each entry independently, so that parameters can be sliced.
        memory: bytes of all buffers together.

        Raises UserError if ``memory`` or the disk is too small.
        """
        self.inner, self.param_groups, self._weights = inner, inner.param_groups, weights
        self._budget = budget = GroupBudget(
            size=min(memory // SHARES, LARGEST) // PAGE * PAGE,
            states=states,
            weights=weights is not None,
            divisible=divisible,
        )
        wholes = list(_pieces(self.param_groups))
        self._resident = [p for p in wholes if p.parameter.device.type != "cpu"]
        streamed = [p for p in wholes if p.parameter.device.type == "cpu"]
        self._groups = group_slices(streamed, budget)
        self._slots = open_slot_file([budget.slot_bytes(group) for group in self._groups])
        storages: list[GroupStorage] = [self._slots]
        if weights:
            storages.append(weights.group_storage(self._groups))
        self._buffers = PrefetchBuffers(storages, len(self._groups), budget.size)

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient. Raises RunError if the disk fails."""
        self._slots.check()
        if self._weights:
            self._weights.drop_prefetched()
        self._update(self._resident, None)
        for group, buffer in self._buffers:
            self._update(self._groups[group], buffer)
        if self._weights:
            self._buffers.wait()  # prefetch reads what was written last
            self._weights.prefetch()

    def states(self) -> Iterator[tuple[str, dict[str, StateTensor]]]:
        """Yield the name of each parameter that has states, and its states by name. A state on
        the disk is read when its ``read`` is called."""
        pieces = [*self._resident, *(piece for group in self._groups for piece in group)]
        for name, parts in groupby(pieces, key=lambda piece: piece.name):
            first = next(parts)  # all slices of a parameter have the same states
            shape = tuple(first.parameter.shape)
            states = in_memory(first.rest)
            for key, (_, dtype) in first.states.items():
                read = partial(self._read, name, key)
                states[key] = StateTensor(shape=shape, dtype=dtype, read=read)
            if states:
                yield name, states

    def _read(self, name: str, key: str) -> Tensor:
        """Read the state ``key`` of the parameter ``name`` from all groups that hold a slice of the
        parameter. A group that the last call has read is still in memory."""
        slices = [
            (piece, group)
            for group, pieces in enumerate(self._groups)
            for piece in pieces
            if piece.name == name
        ]
        first = slices[0][0]
        state = torch.empty(first.parameter.shape, dtype=first.states[key][1])
        for piece, group in slices:
            piece.of(state).copy_(_stored(piece, self._buffers.fetch(group))[key])
        return state

    @torch.no_grad()
    def load_states(self, find: Callable[[str], OptimizerState]) -> None:
        """Set the states of each parameter to ``find(name)``, before the first step. ``find`` is
        called once per parameter, in the order of ``states()``."""
        last: tuple[str, OptimizerState] = "", {}
        for piece, buffer in self._each_slice():
            if piece.name != last[0]:
                last = piece.name, find(piece.name)
            self._keep(piece, self._part(piece, last[1]), buffer)

    def _part(self, piece: ParameterSlice, state: OptimizerState) -> dict[str, Any]:
        """Return the part of ``state``, a parameter's state, that belongs to the slice ``piece``,
        on the device that the optimizer requires."""
        fused, shape = self.param_groups[piece.group].get("fused"), piece.parameter.shape
        part: dict[str, Any] = {}
        for key, value in state.items():
            alike = _is_like(value, shape)
            part[key] = piece.of(value.contiguous()) if alike else _copied(value)
            if isinstance(value, Tensor) and (alike or fused):
                part[key] = part[key].to(piece.parameter.device)
        return part

    def _each_slice(self) -> Iterator[tuple[ParameterSlice, Buffer | None]]:
        """Yield each slice with the buffer that holds its states; None if the states stay in
        memory."""
        for piece in self._resident:
            yield piece, None
        for group, buffer in self._buffers:
            for piece in self._groups[group]:
                yield piece, buffer

    def _update(self, pieces: Sequence[ParameterSlice], buffer: Buffer | None) -> None:
        """Run a step of ``inner`` that updates only the slices ``pieces``."""
        updated = [(piece, self._weight(piece, buffer)) for piece in pieces]
        updated = [(piece, weight) for piece, weight in updated if weight.grad is not None]
        for piece, weight in updated:
            stored = _stored(piece, buffer) if buffer else {}
            self.inner.state[weight] = {**piece.rest, **stored}
        self.inner.param_groups = [
            {**group, "params": [weight for piece, weight in updated if piece.group == number]}
            for number, group in enumerate(self.param_groups)
        ]
        self.inner.step()
        self.inner.param_groups = self.param_groups
        for piece, weight in updated:
            self._keep(piece, self.inner.state.pop(weight), buffer)

    def _weight(self, piece: ParameterSlice, buffer: Buffer | None) -> Tensor:
        """Return the entries of the parameter that ``inner`` updates for ``piece``, with their
        gradient."""
        parameter = piece.parameter
        if buffer and self._weights and self._weights.holds(parameter):
            weight = buffer.tensor(piece.weight, piece.entries, parameter.dtype).view(piece.shape)
        else:
            weight = piece.of(parameter)
        weight.grad = None if parameter.grad is None else piece.of(parameter.grad.contiguous())
        return weight

    def _keep(self, piece: ParameterSlice, state: OptimizerState, buffer: Buffer | None) -> None:
        """Copy the states that have the slice's shape into ``buffer``, unless they are there
        already. Other states stay in memory, and so do all states if ``buffer`` is None."""
        for key, value in state.items():
            if buffer is None or not _is_like(value, piece.shape):
                piece.rest[key] = value
                continue
            if key not in piece.states:
                piece.states[key] = self._budget.state_offset(piece, len(piece.states)), value.dtype
            target = _stored(piece, buffer)[key]
            if target.data_ptr() != value.data_ptr():
                target.copy_(value)


def _pieces(groups: Sequence[Mapping[str, Any]]) -> Iterator[ParameterSlice]:
    """Yield one slice per parameter, with all its entries."""
    for number, group in enumerate(groups):
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            yield ParameterSlice(
                name=name, parameter=parameter, group=number, start=0, stop=parameter.numel()
            )


def _stored(piece: ParameterSlice, buffer: Buffer) -> dict[str, Tensor]:
    """Return views of the slice's states in ``buffer``, the buffer of its group."""
    return {
        key: buffer.tensor(offset, piece.entries, dtype).view(piece.shape)
        for key, (offset, dtype) in piece.states.items()
    }


def _is_like(value: object, shape: Sequence[int]) -> bool:
    """Return whether ``value`` is a tensor of ``shape``, and not a number."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == tuple(shape)


def _copied(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
