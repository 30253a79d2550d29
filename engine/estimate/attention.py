"""Allocations and traffic of attention over samples that several ranks hold
(models/parallel/attention.py), on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nlargest

from engine.estimate.ledger import Ledger, MemoryKind
from engine.estimate.linear import ForwardMode
from engine.estimate.local_shapes import LocalShapes
from models.parallel.rows import Segment, before

FLOAT32 = 4
MASKING = 2 * 2
"""Bytes that the drawing of an entry of a dropout mask takes (models/parallel/dropout.py)."""

TRIED = 16
"""Shards of a group whose memory is simulated."""


@dataclass(frozen=True, kw_only=True)
class GroupAttentionMemory:
    """Simulates the allocations of attention in a ledger, of shard ``member`` of a group. Keys and
    values are exchanged; the scores are allocated only with dropout, whose mask no fused kernel can
    draw."""

    shapes: LocalShapes
    member: int

    @classmethod
    def fullest(cls, shapes: LocalShapes) -> GroupAttentionMemory:
        """Return the attention of the shard that needs the most memory, among those that receive
        and send the most keys."""
        shards = [cls(shapes=shapes, member=member) for member in range(shapes.order.group)]
        some = nlargest(TRIED, shards, key=lambda shard: sum(shard.received) + sum(shard.sent))
        return max(some, key=lambda shard: shard.peak)

    @cached_property
    def peak(self) -> int:
        """The most bytes of a forward and a backward pass."""
        ledger = Ledger()
        self.forward(ledger, ForwardMode.ALL, MemoryKind.ACTIVATIONS)
        self.backward(ledger)
        return ledger.peak_total

    @cached_property
    def width(self) -> int:
        """Features of a rank's heads."""
        model, inner = self.shapes.settings.model, self.shapes.mode.inner
        return self.shapes.width(model.n_head * model.head_dim, inner.hidden)

    @cached_property
    def heads(self) -> int:
        return self.width // self.shapes.settings.model.head_dim

    @cached_property
    def segments(self) -> list[Segment]:
        """The rows of the shard by sample."""
        return self.shapes.order.segments(self.member)

    @cached_property
    def wide(self) -> int:
        """Bytes of an entry of the log-sum-exp, and of sums over blocks of keys."""
        return max(FLOAT32, self.shapes.compute)

    @cached_property
    def rounds(self) -> list[range]:
        """The rounds of the exchange."""
        return self.shapes.order.rounds(self.shapes.settings.context)

    @cached_property
    def kv(self) -> int:
        """Bytes of a contiguous copy of the own keys and values, to be sent."""
        return self._keys(self.shapes.order.local) if self.rounds else 0

    def _keys(self, tokens: int) -> int:
        return 2 * tokens * self.width * self.shapes.compute

    @cached_property
    def received(self) -> list[int]:
        """Bytes of the keys and values that arrive in each round."""
        order = self.shapes.order
        others = ([(self.member + step) % order.group for step in steps] for steps in self.rounds)
        return [
            sum(self._keys(len(order.needed(self.member, other))) for other in some)
            for some in others
        ]

    @cached_property
    def sent(self) -> list[int]:
        """Bytes of the keys and values that are sent in each round; as many bytes of gradients
        return."""
        order = self.shapes.order
        others = ([(self.member - step) % order.group for step in steps] for steps in self.rounds)
        return [
            sum(self._keys(len(order.needed(other, self.member))) for other in some)
            for some in others
        ]

    @property
    def keeps_keys(self) -> bool:
        """True if the keys of other ranks are saved for the backward pass."""
        return self.shapes.settings.keep_gathers and self.shapes.settings.context == "gather"

    @cached_property
    def saved(self) -> int:
        """Bytes of the output and the log-sum-exp."""
        return self._result(self.shapes.order.local, self.shapes.compute)

    def _result(self, rows: int, entry: int) -> int:
        return rows * (self.width * entry + self.heads * self.wide)

    def _past(self, tokens: Sequence[range]) -> list[tuple[Segment, int]]:
        """List the segments with tokens before them among ``tokens``, and the number of these."""
        found = [(segment, len(before(segment, tokens)[0])) for segment in self.segments]
        return [(segment, keys) for segment, keys in found if keys]

    @cached_property
    def arrivals(self) -> list[list[tuple[Segment, int]]]:
        """The segments that attend to own keys before them, and to the keys of each round."""
        order = self.shapes.order
        own = order.tokens_in(self.member, order.needed(self.member, self.member))
        received = [order.received(self.member, steps) for steps in self.rounds]
        return [self._past(tokens) for tokens in (own, *received)]

    def forward(self, ledger: Ledger, run: ForwardMode, kind: MemoryKind) -> None:
        """Simulate qkv -> the output and its log-sum-exp, as ``kind``."""
        buffers = MemoryKind.BUFFERS
        ledger.allocate(kind, self.saved)
        ledger.allocate(buffers, self.kv + sum(self.received[:1]))
        for segment in self.segments:
            self._attend(ledger, run, segment, segment.stop - segment.start)
            if not segment.start:
                self._drop(ledger, run, segment)
        merged: set[Segment] = set()
        for number, some in enumerate(self.arrivals):
            if number:
                ledger.allocate(buffers, sum(self.received[number : number + 1]))
            for segment, keys in some:
                self._attend(ledger, run, segment, keys)
                result = self._result(segment.rows, self.wide)
                ledger.allocate(buffers, result)
                # The other term, and the weights of both
                ledger.transient(buffers, result + segment.rows * self.heads * self.wide)
                self._drop(ledger, run, segment)
                if segment in merged:
                    ledger.free(buffers, result)
                else:
                    self._drop(ledger, run, segment)
                merged.add(segment)
            if number and run.keeps and self.keeps_keys:
                ledger.recategorise(buffers, MemoryKind.ACTIVATIONS, self.received[number - 1])
            elif number:
                ledger.free(buffers, self.received[number - 1])
        ledger.free(buffers, self.kv)
        ledger.free(buffers, sum(self._result(one.rows, self.wide) for one in merged))

    def _attend(self, ledger: Ledger, run: ForwardMode, segment: Segment, keys: int) -> None:
        """Simulate the result of a segment's block of ``keys`` keys per sample."""
        if run != ForwardMode.RECOMPUTE_FROM_MATMULS:
            kept = MemoryKind.ACTIVATIONS if run.has_matmuls else MemoryKind.BUFFERS
            ledger.allocate(kept, self._result(segment.rows, self.shapes.compute))
        scores = self._scores(segment, keys) * (self.wide + MASKING)
        ledger.transient(MemoryKind.BUFFERS, scores)

    def _drop(self, ledger: Ledger, run: ForwardMode, segment: Segment) -> None:
        """Simulate the end of a result, which selective checkpointing saves."""
        if run == ForwardMode.RECOMPUTE_FROM_MATMULS:
            ledger.free(MemoryKind.ACTIVATIONS, self._result(segment.rows, self.shapes.compute))
        elif not run.has_matmuls:
            ledger.free(MemoryKind.BUFFERS, self._result(segment.rows, self.shapes.compute))

    def _scores(self, segment: Segment, keys: int) -> int:
        """Entries of the scores of a block, if there is dropout."""
        return segment.rows * self.heads * keys if self.shapes.settings.model.attn_pdrop else 0

    def backward(self, ledger: Ledger) -> None:
        """Simulate dy -> dqkv, both among the buffers; free what was saved, except qkv."""
        shapes, buffers = self.shapes, MemoryKind.BUFFERS
        entries = shapes.order.local * self.width
        fetches = not self.keeps_keys
        ledger.allocate(buffers, 3 * entries * self.wide)
        if fetches:
            ledger.allocate(buffers, self.kv + sum(self.received[:1]))
        for segment in self.segments:
            self._differentiate(ledger, segment, segment.stop - segment.start, own=True)
        # Recomputed tensors are freed once they are used, others by the end of this pass.
        held = self.keeps_keys and not shapes.settings.model.checkpoint
        holder = MemoryKind.ACTIVATIONS if self.keeps_keys else buffers
        returning = 0
        for number, some in enumerate(self.arrivals):
            arrived = self.received[number - 1] if number else 0
            if number and fetches:
                ledger.allocate(buffers, sum(self.received[number : number + 1]))
                ledger.free(buffers, self.kv if number == len(self.rounds) else 0)
            ledger.allocate(buffers, arrived)  # their gradients
            for segment, keys in some:
                self._differentiate(ledger, segment, keys, own=not number)
            if number:
                ledger.free(holder, 0 if held else arrived)
                ledger.allocate(buffers, self.sent[number - 1])
                ledger.free(buffers, returning)
                returning = arrived + self.sent[number - 1]
        ledger.free(buffers, returning)
        if shapes.compute < self.wide:
            ledger.allocate(buffers, 3 * entries * shapes.compute)
            ledger.free(buffers, 3 * entries * self.wide)
        ledger.free(buffers, entries * shapes.compute)
        ledger.free(MemoryKind.ACTIVATIONS, self.saved)
        ledger.free(holder, sum(self.received) if held else 0)

    def _differentiate(self, ledger: Ledger, segment: Segment, keys: int, *, own: bool) -> None:
        """Simulate the gradients of a block of ``keys`` keys per sample, ``own`` or of other
        ranks; those that are added to wide sums are cast."""
        compute, wide = self.shapes.compute, self.wide
        gradients = (segment.rows + 2 * segment.count * keys) * self.width
        added = max(segment.rows, segment.count * keys if own else 0) * self.width
        cast = added * wide if compute < wide and self.shapes.device == "cpu" else 0
        ledger.transient(MemoryKind.BUFFERS, gradients * compute + cast)
        if scores := self._scores(segment, keys):
            casts = gradients * compute if compute < wide else 0
            # Probabilities with and without dropout, their gradient, the mask; dv and a copy of dy
            first = scores * (3 * wide + 1)
            first += (segment.rows + segment.count * keys) * self.width * wide
            last = scores * (2 * wide + 1) + gradients * wide + casts
            ledger.transient(MemoryKind.BUFFERS, max(first, last))
