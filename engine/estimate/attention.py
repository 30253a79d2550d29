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
    """Simulates, in a ledger, the allocations of attention on the rank with shard ``member`` of a
    group of ranks that hold samples together. The ranks exchange keys and values. Attention scores
    are allocated only with dropout, since no fused kernel can draw the dropout mask."""

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
        """Peak bytes allocated during a forward and a backward pass."""
        ledger = Ledger()
        self.forward(ledger, ForwardMode.ALL, MemoryKind.ACTIVATIONS)
        self.backward(ledger)
        return ledger.peak_total

    @cached_property
    def width(self) -> int:
        """Number of features in this rank's attention heads: heads x head_dim."""
        model, inner = self.shapes.settings.model, self.shapes.mode.inner
        return self.shapes.width(model.n_head * model.head_dim, inner.hidden)

    @cached_property
    def heads(self) -> int:
        return self.width // self.shapes.settings.model.head_dim

    @cached_property
    def segments(self) -> list[Segment]:
        """The rows of this shard, divided by sample."""
        return self.shapes.order.segments(self.member)

    @cached_property
    def wide(self) -> int:
        """Bytes per entry of the log-sum-exp and of sums over blocks of keys."""
        return max(FLOAT32, self.shapes.compute)

    @cached_property
    def rounds(self) -> list[range]:
        """The rounds in which the ranks exchange keys and values."""
        return self.shapes.order.rounds(self.shapes.settings.context)

    @cached_property
    def kv(self) -> int:
        """Bytes of the contiguous copy of this rank's keys and values that is sent."""
        return self._keys(self.shapes.order.local) if self.rounds else 0

    def _keys(self, tokens: int) -> int:
        return 2 * tokens * self.width * self.shapes.compute

    @cached_property
    def received(self) -> list[int]:
        """Bytes of the keys and values that this rank receives in each round."""
        order = self.shapes.order
        tokens = (order.received(self.member, steps) for steps in self.rounds)
        return [self._keys(sum(map(len, some))) for some in tokens]

    @cached_property
    def sent(self) -> list[int]:
        """Bytes of the keys and values that this rank sends in each round. It receives as many
        bytes of gradients back."""
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
        """Bytes of attention's output and log-sum-exp, saved for the backward pass."""
        return self._result(self.shapes.order.local, self.shapes.compute)

    def _result(self, rows: int, entry: int) -> int:
        return rows * (self.width * entry + self.heads * self.wide)

    def _past(self, tokens: Sequence[range]) -> list[tuple[Segment, int]]:
        """List each segment that attends to some of ``tokens``, with the number of those tokens."""
        found = [(segment, len(before(segment, tokens)[0])) for segment in self.segments]
        return [(segment, keys) for segment, keys in found if keys]

    @cached_property
    def arrivals(self) -> list[list[tuple[Segment, int]]]:
        """Per block of keys, the segments that attend to it: first this rank's own earlier keys,
        then the keys of each round."""
        order = self.shapes.order
        own = order.tokens_in(self.member, order.needed(self.member, self.member))
        received = [order.received(self.member, steps) for steps in self.rounds]
        return [self._past(tokens) for tokens in (own, *received)]

    def forward(self, ledger: Ledger, run: ForwardMode, kind: MemoryKind) -> None:
        """Simulate the forward pass from qkv to the output and the log-sum-exp, which count as
        ``kind``."""
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
        """Simulate the attention of a segment to a block of ``keys`` keys per sample."""
        if run != ForwardMode.RECOMPUTE_FROM_MATMULS:
            kept = MemoryKind.ACTIVATIONS if run.has_matmuls else MemoryKind.BUFFERS
            ledger.allocate(kept, self._result(segment.rows, self.shapes.compute))
        scores = self._scores(segment, keys) * (self.wide + MASKING)
        ledger.transient(MemoryKind.BUFFERS, scores)

    def _drop(self, ledger: Ledger, run: ForwardMode, segment: Segment) -> None:
        """Free the result of attention to one block, unless selective checkpointing saves it."""
        if run == ForwardMode.RECOMPUTE_FROM_MATMULS:
            ledger.free(MemoryKind.ACTIVATIONS, self._result(segment.rows, self.shapes.compute))
        elif not run.has_matmuls:
            ledger.free(MemoryKind.BUFFERS, self._result(segment.rows, self.shapes.compute))

    def _scores(self, segment: Segment, keys: int) -> int:
        """Return the number of attention scores in a block; 0 without dropout."""
        return segment.rows * self.heads * keys if self.shapes.settings.model.attn_pdrop else 0

    def backward(self, ledger: Ledger) -> None:
        """Simulate the backward pass from dy to dqkv, both counted as buffers. Free the saved
        tensors except qkv."""
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
        """Simulate the gradients of one block: ``keys`` keys per sample, this rank's ``own`` or
        those received. Gradients that are added to sums of a wider type are cast."""
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
