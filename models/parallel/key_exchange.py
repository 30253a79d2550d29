"""The exchange of keys and values among ranks that hold samples together.

A rank receives from each other rank only the keys and values that its own rows attend to, and
sends the gradients of these keys and values back. With ``context="gather"`` all received keys are
in memory at once; with "ring" a rank uses the keys of one rank while the keys of the next are in
transit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from models.parallel.collectives import Handle
from models.parallel.context import ParallelContext
from models.parallel.rows import RowOrder


class Keys(NamedTuple):
    """Keys and values of some of the tokens that a group of ranks holds together."""

    kv: Tensor
    """Keys and values [tokens, heads, 2, d]."""
    tokens: Sequence[range]
    """The tokens in the order of kv, counted from the group's first token."""


class Returned(NamedTuple):
    """Gradients in transit that other ranks computed, of this rank's keys and values."""

    handle: Handle
    gradients: Sequence[tuple[range, Tensor]]

    def add_to(self, sums: Tensor) -> None:
        """Wait for the gradients and add them to ``sums``, in the order of their senders."""
        self.handle.wait()
        for rows, gradient in self.gradients:
            sums[rows.start : rows.stop] += gradient


class SampleGroup:
    """This rank's place among the ranks that hold samples together."""

    def __init__(self, order: RowOrder, parallel: ParallelContext) -> None:
        self.order, self.parallel = order, parallel
        shard: int = parallel.rows(order.rows, order.axes).start // order.local
        group, self.member = divmod(shard, order.group)
        self.first_sample = group * order.group * order.local // order.length
        self.segments = order.segments(self.member)
        self.rounds = order.rounds(parallel.context)
        self.own = order.needed(self.member, self.member)

    @property
    def own_rows(self) -> slice:
        """The rows of this rank's early piece that its late piece attends to."""
        return slice(self.own.start, self.own.stop)

    @property
    def keeps_keys(self) -> bool:
        """Return whether the keys of other ranks are saved for the backward pass."""
        return self.parallel.keep_gathers and self.parallel.context == "gather"

    def own_keys(self, kv: Tensor) -> Keys:
        """Select ``own_rows`` of this rank's kv [rows, heads, 2, d]."""
        return Keys(kv[self.own_rows], self.order.tokens_in(self.member, self.own))

    def received(self, number: int) -> list[range]:
        """Return the tokens whose keys and values this rank receives in round ``number``."""
        return self.order.received(self.member, self.rounds[number])

    def fetch(self, kv: Tensor, number: int) -> tuple[Handle, Tensor]:
        """Start round ``number``: send rows of this rank's contiguous kv to the ranks that need
        them. Return a handle to wait for, and the keys and values that this rank receives."""
        keys = kv.new_empty((sum(map(len, self.received(number))), *kv.shape[1:]))
        send = {}
        for step in self.rounds[number]:
            rows = self.order.needed(self._other(-step), self.member)
            send[self._other(-step)] = kv[rows.start : rows.stop]
        return self._exchange(kv, send, self._by_source(keys, number)), keys

    def give_back(self, gradients: Tensor, number: int) -> Returned:
        """Start to send the gradients of the kv received in round ``number`` back to its owners,
        and to receive the gradients of this rank's kv."""
        others = [self._other(-step) for step in self.rounds[number]]
        rows = {other: self.order.needed(other, self.member) for other in sorted(others)}
        mine = {
            other: gradients.new_empty((len(some), *gradients.shape[1:]))
            for other, some in rows.items()
        }
        handle = self._exchange(gradients, self._by_source(gradients, number), mine)
        return Returned(handle, [(rows[other], mine[other]) for other in rows])

    def _other(self, step: int) -> int:
        return (self.member + step) % self.order.group

    def _by_source(self, x: Tensor, number: int) -> Mapping[int, Tensor]:
        """Split x [tokens received in round ``number``, ...] by the shard that holds the tokens."""
        sources = sorted(map(self._other, self.rounds[number]))
        sizes = [len(self.order.needed(self.member, source)) for source in sources]
        return dict(zip(sources, x.split(sizes), strict=True))

    def _exchange(
        self, like: Tensor, send: Mapping[int, Tensor], receive: Mapping[int, Tensor]
    ) -> Handle:
        """Start an exchange within the group. ``send``, ``receive``: tensors by shard."""
        tensor, empty = self.parallel.axes["tensor"], like.new_empty(0)
        to, of = [empty] * tensor.size, [empty] * tensor.size
        for shard in send.keys() | receive.keys():
            place = self._place(shard)
            to[place], of[place] = send.get(shard, empty), receive.get(shard, empty)
        return tensor.start_all_to_all(to, of)

    def _place(self, shard: int) -> int:
        """Return the index along the axis "tensor" of the rank that has ``shard`` of the group."""
        index = {}
        for axis in reversed(self.order.gathered_axes):
            shard, index[axis] = divmod(shard, self.parallel.sizes[axis])
        return self.parallel.tensor_index(**index)


class Arrivals:
    """Receives the keys and values of other ranks by rounds, one round ahead of their use."""

    def __init__(self, group: SampleGroup, kv: Tensor, held: Sequence[Tensor] = ()) -> None:
        """Start the first round of exchanging kv [rows, heads, 2, d]. ``held``: the keys and
        values of every round, if an earlier pass saved them; then nothing is exchanged."""
        self.group, self.number, self.held = group, 0, [*held]
        self.kv = None if held or not group.rounds else kv.contiguous()
        self.in_transit: tuple[Handle, Tensor] | None = None
        self._start()

    def take(self) -> Keys:
        """Wait for the current round, start the next, and return the keys and values received."""
        tokens = self.group.received(self.number)
        self.number += 1
        if self.held:
            return Keys(self.held.pop(0), tokens)
        assert self.in_transit is not None
        handle, keys = self.in_transit
        handle.wait()
        del handle
        self.in_transit = None
        self._start()
        return Keys(keys, tokens)

    def _start(self) -> None:
        if self.number == len(self.group.rounds):
            self.kv = self.in_transit = None
        elif self.kv is not None:
            self.in_transit = self.group.fetch(self.kv, self.number)
