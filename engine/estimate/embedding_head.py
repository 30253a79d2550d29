"""Allocations of the embeddings, and of the head with its loss, on one rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from engine.estimate.block import FLOAT32, draw_mask, norm_backward, norm_forward
from engine.estimate.ledger import Ledger, MemoryKind
from engine.estimate.linear import (
    accumulate,
    gather_weight,
    reduce_gradient,
    reduced_gradient_bytes,
    scattered,
)
from engine.estimate.local_shapes import LocalLinear, LocalShapes, LocalWeight
from models.parallel.tuning import BLOCK_BYTES, ROW_MULTIPLE, chunk_bytes, chunk_rows

INDEX = 8
"""Bytes of a token id."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingHeadMemory:
    """Simulates, in a ledger, the allocations of the embeddings, and of the head with its loss.

    The token table is sharded like a column-parallel weight [hidden, vocabulary] that computes the
    logits.
    """

    shapes: LocalShapes

    @cached_property
    def head(self) -> LocalLinear:
        """The matmul that computes all logits of a micro-batch."""
        model, shapes = self.shapes.settings.model, self.shapes
        padded = shapes.table_rows * shapes.num_shards(shapes.mode.up.weight_out)
        linear = shapes.up(model.n_embd, padded)
        return replace(linear, weight=replace(linear.weight, columns=True))

    @cached_property
    def table(self) -> LocalWeight:
        """The token table, gathered over the axis that the embedding lookup needs."""
        axis = self.shapes.collective_axis(self.shapes.mode.lookup.gather_w)
        return replace(self.head.weight, axis=axis)

    @cached_property
    def whole_vocabulary(self) -> bool:
        """True if no other rank has a part of the vocabulary."""
        return self.shapes.num_shards(self.shapes.mode.up.weight_out) == 1

    @cached_property
    def lookup_entries(self) -> int:
        """Number of entries of the rows that a rank looks up in its part of the vocabulary, before
        the reduce-scatter adds the rows of the other parts."""
        return self._lookups * self.table.gathered_entries // self.table.outputs

    @property
    def _lookups(self) -> int:
        return self.shapes.tokens // self.shapes.num_shards(self.shapes.mode.lookup.tokens)

    @cached_property
    def positions(self) -> int:
        """Entries of the rank's position table."""
        shapes = self.shapes
        hidden = shapes.width(shapes.settings.model.n_embd, shapes.mode.outer.hidden)
        return shapes.settings.model.block_size * hidden

    @cached_property
    def kept_ids(self) -> int:
        """Bytes saved for the backward pass: the ids, and the mask of ids in this rank's part of
        the vocabulary."""
        bytes_per_lookup = INDEX if self.whole_vocabulary else INDEX + 1
        return self._lookups * bytes_per_lookup + self.shapes.rows(self.shapes.mode.outer) * INDEX

    def embed(self, ledger: Ledger) -> None:
        """Simulate the embedding of token ids as x, which counts as a buffer."""
        shapes, x, c = self.shapes, self.shapes.x, self.shapes.compute
        ledger.allocate(MemoryKind.ACTIVATIONS, self.kept_ids)
        together = not shapes.zero and self.table.axis.size == 1
        table = 0 if together else gather_weight(ledger, shapes, self.table)
        if together and shapes.casts:
            table = self.lookup_entries * shapes.parameter  # rows are cast, not the table
            ledger.allocate(MemoryKind.BUFFERS, table)
        with ledger.temporarily(MemoryKind.BUFFERS, self.lookup_entries * c):
            ledger.free(MemoryKind.BUFFERS, table)
            terms = (
                self.shapes.collective_axis(self.shapes.mode.lookup.scatter_y).size > 1
                and shapes.uses_gloo_pairs
            )
            with ledger.temporarily(MemoryKind.BUFFERS, self.lookup_entries * c * terms):
                ledger.allocate(MemoryKind.BUFFERS, x * c)
        # The rows of the positions, then the sum of both.
        ledger.chain(MemoryKind.BUFFERS, x * shapes.parameter, x * c if shapes.casts else 0)
        ledger.allocate(MemoryKind.BUFFERS, x * c)
        ledger.free(MemoryKind.BUFFERS, x * c + x * (c if shapes.casts else shapes.parameter))
        if shapes.settings.model.embd_pdrop:
            draw_mask(ledger, x, MemoryKind.ACTIVATIONS)
            ledger.transient(MemoryKind.BUFFERS, x * c)

    def embed_backward(self, ledger: Ledger, *, first: bool, tied: bool) -> None:
        """Simulate the gradients of both tables from dx, which counts as a buffer. If ``tied`` on
        this rank, the token table's gradient is added to the head's."""
        shapes, c, p, dx = self.shapes, self.shapes.compute, self.shapes.parameter, self.shapes.x
        if shapes.settings.model.embd_pdrop:
            ledger.transient(MemoryKind.BUFFERS, 2 * dx * c)
            ledger.free(MemoryKind.ACTIVATIONS, dx)
        # The second dx of model.scale_embedding is less than the backward of a block needs
        with ledger.temporarily(MemoryKind.BUFFERS, dx * p if shapes.casts else 0):
            ledger.allocate(MemoryKind.BUFFERS, self.positions * p)
        if first and not shapes.summed_axes(((), shapes.mode.outer.hidden)):
            ledger.allocate(MemoryKind.GRADIENTS, self.positions * p)
        ledger.free(MemoryKind.BUFFERS, self.positions * p)

        gathers = shapes.collective_axis(shapes.mode.lookup.scatter_y).size > 1
        gathered = self.lookup_entries * c if gathers else dx * c
        if gathers:
            ledger.allocate(MemoryKind.BUFFERS, gathered)
            ledger.free(MemoryKind.BUFFERS, dx * c)
        rows = ledger.chain(
            MemoryKind.BUFFERS,
            self.lookup_entries * p if shapes.casts else 0,
            0 if self.whole_vocabulary else self.lookup_entries * p,
        )
        ledger.allocate(MemoryKind.BUFFERS, self.table.gathered_entries * p)
        reduce_gradient(ledger, shapes, self.table)
        ledger.free(MemoryKind.BUFFERS, rows + gathered)
        ledger.free(MemoryKind.ACTIVATIONS, self.kept_ids)
        if tied and shapes.zero != 1:
            ledger.free(
                MemoryKind.BUFFERS, reduced_gradient_bytes(shapes, self.table)
            )  # added to the head's
            accumulate(ledger, shapes, self.table, first=first)
        else:
            accumulate(ledger, shapes, self.table, first=first and not tied)

    def loss(self, ledger: Ledger) -> None:
        """Simulate the loss, which computes dx and dw from the saved x. Both count as logits.

        Each chunk (models/parallel/loss.py) allocates logits in the compute type, which its
        gradient overwrites; the float32 softmax of a block of the logits; the chunk's term of dx;
        and the chunk's term of dw, piece by piece.
        """
        shapes, x = self.shapes, self.shapes.x * self.shapes.compute
        norm_forward(ledger, shapes, MemoryKind.ACTIVATIONS)
        ledger.recategorise(
            MemoryKind.ACTIVATIONS, MemoryKind.BUFFERS, x
        )  # nothing needs the norm's output later
        table = gather_weight(ledger, shapes, self.head.weight)
        dw = self.head.weight.gathered_entries * shapes.parameter
        ledger.allocate(MemoryKind.LOGITS, x + dw)
        rows = shapes.rows(shapes.mode.outer)
        size = min(self.chunk, rows)
        for chunk in (size, rows - size if rows < 2 * size else size):
            if chunk:
                self._chunk(ledger, chunk / rows)
        ledger.transient(MemoryKind.LOGITS, 0 if shapes.device == "cuda" else dw)  # transposed
        ledger.free(MemoryKind.BUFFERS, table + x)

    @cached_property
    def chunk(self) -> int:
        """Rows of x in a chunk of the loss."""
        axis, on_tokens = self.head.axis_x, not self.head.on_hidden
        gathered = axis.size if on_tokens else 1
        shapes, row_bytes = self.shapes, gathered * self.table.outputs * self.shapes.compute
        rows, multiple = shapes.rows(shapes.mode.outer), ROW_MULTIPLE[shapes.device]
        return shapes.settings.loss_chunk or chunk_rows(rows, row_bytes, shapes.device, multiple)

    def _rows_within(self, budget: int, entry: int) -> int:
        """Return the number of rows of the rank's logits that fit into ``budget`` bytes; at least
        1. ``entry``: bytes per entry."""
        return max(1, budget // (self.table.outputs * entry))

    def _chunk(self, ledger: Ledger, share: float) -> None:
        """Simulate one chunk of the loss, which has the fraction ``share`` of this rank's rows."""
        shapes, head, c = self.shapes, self.head, self.shapes.compute
        logits, vocabulary, cuda = (
            round(head.y * share),
            self.table.outputs,
            shapes.device == "cuda",
        )

        x = round(head.gathered_x * share) * c if head.axis_x.size > 1 else 0
        ledger.chain(MemoryKind.BUFFERS, x, x if head.on_hidden else 0)
        scattered(ledger, shapes, logits, head.axis_y.size, c, kind=MemoryKind.LOGITS)
        block = logits
        if not cuda and self.whole_vocabulary:
            block = min(logits, self._rows_within(BLOCK_BYTES, FLOAT32) * vocabulary)
        # Cast first; on a CPU a result of another type than its terms is copied. The kernels of a
        # GPU, which float64 does not have, need no copy.
        copies = int(c > FLOAT32) if cuda else 1 + 2 * shapes.casts
        ledger.transient(MemoryKind.LOGITS, copies * block * max(FLOAT32, c))
        dlogits = logits * c * head.axis_y.size if head.axis_y.size > 1 else 0
        ledger.allocate(MemoryKind.LOGITS, dlogits)
        dx = round(shapes.x * share)
        scattered(ledger, shapes, dx, head.axis_x.size, c, copied=head.on_hidden)
        piece = min(
            head.weight.gathered_entries,
            self._rows_within(chunk_bytes(shapes.device), FLOAT32) * vocabulary,
        )
        # A GPU adds the product in place. On a CPU an addition of two types makes a copy.
        copied = shapes.parameter if shapes.casts else 0
        ledger.transient(MemoryKind.LOGITS, 0 if cuda else piece * (c + copied))
        ledger.free(MemoryKind.LOGITS, dlogits + logits * c)
        ledger.free(MemoryKind.BUFFERS, dx * c + x)

    def loss_backward(self, ledger: Ledger, *, first: bool, tied: bool) -> None:
        """Simulate the backward pass of head and last norm: reduce the table's dw, compute dx,
        which counts as a buffer, and free the norm's input.

        If ``tied`` on this rank, dw remains a buffer until the lookup's gradient is added.
        """
        shapes, weight = self.shapes, self.head.weight
        dx, dw = shapes.x * shapes.compute, weight.gathered_entries * shapes.parameter
        # Always scaled on a GPU: to read the scale would synchronise with it.
        with ledger.temporarily(MemoryKind.LOGITS, dx + dw if shapes.device == "cuda" else 0):
            ledger.recategorise(MemoryKind.LOGITS, MemoryKind.BUFFERS, dx + dw)
            reduce_gradient(ledger, shapes, weight)
        if not tied or shapes.zero == 1:
            accumulate(ledger, shapes, weight, first=first)
        norm_backward(ledger, shapes)
        ledger.free(MemoryKind.ACTIVATIONS, dx)
