"""Allocations and traffic of attention over samples that several ranks hold
(models/parallel/attention.py), on one rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from engine.estimate.ledger import Ledger, MemoryKind
from engine.estimate.linear import ForwardMode
from engine.estimate.local_shapes import CollectiveAxis, LocalShapes
from models.parallel.rows import Segment

FLOAT32 = 4
MASKING = 2 * 2
"""Bytes that the drawing of an entry of a dropout mask takes (models/parallel/dropout.py)."""


@dataclass(frozen=True, kw_only=True)
class GroupAttentionMemory:
    """Simulates the allocations of attention in a ledger. Keys and values are gathered; the scores
    are allocated only with dropout, whose mask no fused kernel can draw."""

    shapes: LocalShapes

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
        """The rows of a rank by sample: of the rank that needs the most memory."""
        order = self.shapes.order
        members = map(order.segments, range(order.group))
        return max(members, key=lambda segments: max(map(self._gradients, segments)))

    @cached_property
    def wide(self) -> int:
        """Bytes of an entry of the log-sum-exp."""
        return max(FLOAT32, self.shapes.compute)

    @cached_property
    def kv(self) -> int:
        """Bytes of keys and values of a rank's own rows."""
        return 2 * self.shapes.order.local * self.width * self.shapes.compute

    @cached_property
    def gathered(self) -> int:
        """Bytes of gathered keys and values."""
        return self.kv * self.shapes.order.group

    @cached_property
    def saved(self) -> int:
        """Bytes of the output and the log-sum-exp."""
        return self._result(self.shapes.order.local)

    def _result(self, rows: int) -> int:
        return rows * (self.width * self.shapes.compute + self.heads * self.wide)

    @cached_property
    def block_results(self) -> int:
        """Bytes of the results of all blocks of keys."""
        return sum(self._result(segment.rows) * self._blocks(segment) for segment in self.segments)

    def _blocks(self, segment: Segment) -> int:
        return 1 + (segment.start > 0)

    @property
    def axes(self) -> list[CollectiveAxis]:
        """The axes of the gathers, in their order."""
        order = self.shapes.order
        return [self.shapes.collective_axis(name) for name in reversed(order.gathered_axes)]

    def pieces(self) -> Iterator[tuple[CollectiveAxis, int]]:
        """Yield the axes of the gathers, each with the bytes of the piece that a rank has before
        the gather; they are the axes and pieces of the reduce-scatters in reverse."""
        size = self.kv
        for axis in self.axes:
            if axis.size > 1:
                yield axis, size
                size *= axis.size

    @property
    def _is_reordered(self) -> bool:
        return self.shapes.order.early < self.shapes.order.local

    def gather(self, ledger: Ledger) -> None:
        """Simulate the gathers, then the copy in the order of tokens."""
        sizes = [self.kv, *(axis.size * size for axis, size in self.pieces())]
        ledger.chain(MemoryKind.BUFFERS, *sizes, self.gathered if self._is_reordered else 0)

    def forward(self, ledger: Ledger, run: ForwardMode, kind: MemoryKind) -> None:
        """Simulate qkv -> the output and its log-sum-exp, as ``kind``."""
        self.gather(ledger)
        ledger.allocate(kind, self.saved)
        for segment in self.segments:
            results = self._result(segment.rows) * self._blocks(segment)
            if run != ForwardMode.RECOMPUTE_FROM_MATMULS:
                kept = MemoryKind.ACTIVATIONS if run.has_matmuls else MemoryKind.BUFFERS
                ledger.allocate(kept, results)
            ledger.transient(MemoryKind.BUFFERS, self._merged(segment))
            ledger.transient(MemoryKind.BUFFERS, self._scores(segment) * (self.wide + MASKING))
            if run == ForwardMode.RECOMPUTE_FROM_MATMULS:
                ledger.free(MemoryKind.ACTIVATIONS, results)
            elif not run.has_matmuls:
                ledger.free(MemoryKind.BUFFERS, results)
        if run.keeps and self.shapes.settings.keep_gathers:
            ledger.recategorise(MemoryKind.BUFFERS, MemoryKind.ACTIVATIONS, self.gathered)
        else:
            ledger.free(MemoryKind.BUFFERS, self.gathered)

    def _merged(self, segment: Segment) -> int:
        """Bytes of two weighted terms and of three rows of weights."""
        if self._blocks(segment) == 1:
            return 0
        return segment.rows * self.wide * (2 * self.width + 3 * self.heads)

    def _gradients(self, segment: Segment) -> int:
        """Bytes of dq, dk and dv of the larger block of keys of a segment."""
        keys = max(segment.count * segment.start, segment.rows)
        return (segment.rows + 2 * keys) * self.width * self.shapes.compute

    def _scores(self, segment: Segment) -> int:
        """Entries of the scores of the larger block of keys, if there is dropout."""
        if not self.shapes.settings.model.attn_pdrop:
            return 0
        keys = max(segment.start, segment.stop - segment.start)
        return segment.rows * self.heads * keys

    def _by_scores(self, segment: Segment) -> int:
        """Bytes of a backward pass with dropout: while dv is computed, and when all gradients are
        complete."""
        scores, wide = self._scores(segment), self.wide
        keys = max(segment.start, segment.stop - segment.start) * segment.count
        casts = self._gradients(segment) if self.shapes.compute < wide else 0
        gradients = (segment.rows + 2 * keys) * self.width * wide + casts
        # Probabilities with and without dropout, their gradient, the mask; dv and a copy of dy
        first = scores * (3 * wide + 1) + (segment.rows + keys) * self.width * wide
        return max(first, scores * (2 * wide + 1) + gradients)

    def backward(self, ledger: Ledger) -> None:
        """Simulate dy -> dqkv, both among the buffers; free what was saved, except qkv."""
        shapes, buffers = self.shapes, MemoryKind.BUFFERS
        dy = shapes.order.local * self.width * shapes.compute
        if not shapes.settings.keep_gathers:
            self.gather(ledger)
        ledger.allocate(buffers, 3 * dy + self.gathered)
        for segment in self.segments:
            ledger.transient(buffers, self._gradients(segment))
            if shapes.settings.model.attn_pdrop:
                ledger.transient(buffers, self._by_scores(segment))
        # Recomputed tensors are freed once they are used, others by the end of this pass.
        holder = MemoryKind.ACTIVATIONS if shapes.settings.keep_gathers else buffers
        held = shapes.settings.keep_gathers and not shapes.settings.model.checkpoint
        ledger.free(holder, 0 if held else self.gathered)
        last = self.gathered if self._is_reordered else 0
        ledger.allocate(buffers, last)
        for axis, size in reversed(list(self.pieces())):
            # gloo's pairs buffer all ranks' terms
            with ledger.temporarily(buffers, axis.size * size * shapes.uses_gloo_pairs):
                ledger.allocate(buffers, size)
            ledger.free(buffers, last)
            last = size
        ledger.free(buffers, last + self.gathered + dy)
        ledger.free(MemoryKind.ACTIVATIONS, self.saved)
        ledger.free(holder, self.gathered if held else 0)
