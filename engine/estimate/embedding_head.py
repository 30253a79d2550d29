"""What the two ends of a model allocate on one rank: the embeddings, and the head with its loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from engine.estimate.block import FLOAT32, norm_backward, norm_forward
from engine.estimate.ledger import Kind, Ledger
from engine.estimate.linear import accumulate, scattered, settle, settled, use
from engine.estimate.local_shapes import Linear, Local, Weight
from models.parallel.tuning import BLOCK_BYTES, CHUNK_BYTES

INDEX = 8
"""Bytes of a token's id."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The token table is cut like the *up* weight w [hidden, vocabulary] of the logits."""

    local: Local

    @cached_property
    def head(self) -> Linear:
        """The matmul of all logits of a micro-batch."""
        model, local = self.local.settings.model, self.local
        linear = local.up(model.n_embd, model.vocab_size)
        return replace(linear, weight=replace(linear.weight, columns=True))

    @cached_property
    def table(self) -> Weight:
        """The table as a lookup uses it."""
        over = self.local.over(self.local.mode.lookup.gather_w)
        return replace(self.head.weight, over=over)

    @cached_property
    def whole_vocabulary(self) -> bool:
        return self.table.outputs == self.local.settings.model.vocab_size

    @cached_property
    def looked_up(self) -> int:
        """Entries of what a rank looks up in its part of the vocabulary, before its rows are
        summed with those of the other parts."""
        return self._lookups * self.table.gathered // self.table.outputs

    @property
    def _lookups(self) -> int:
        return self.local.tokens // self.local.pieces(self.local.mode.lookup.tokens)

    @cached_property
    def positions(self) -> int:
        """Entries of the rank's position table."""
        local = self.local
        hidden = local.width(local.settings.model.n_embd, local.mode.outer.hidden)
        return local.settings.model.block_size * hidden

    @cached_property
    def kept_ids(self) -> int:
        """Bytes of ids (and of which of them are this rank's) that lookups keep for backward."""
        own = INDEX if self.whole_vocabulary else INDEX + 1
        return self._lookups * own + self.local.rows(self.local.mode.outer) * INDEX

    def embed(self, ledger: Ledger) -> None:
        """Token ids -> x, among the buffers."""
        local, x, c = self.local, self.local.x, self.local.compute
        ledger.hold(Kind.ACTIVATIONS, self.kept_ids)
        together = not local.zero and self.table.over.size == 1
        table = 0 if together else use(ledger, local, self.table)
        if together and local.casts:
            table = self.looked_up * local.parameter  # rows are cast, not the table
            ledger.hold(Kind.BUFFERS, table)
        with ledger.during(Kind.BUFFERS, self.looked_up * c):
            ledger.drop(Kind.BUFFERS, table)
            terms = self.local.over(self.local.mode.lookup.scatter_y).size > 1 and local.direct
            with ledger.during(Kind.BUFFERS, self.looked_up * c * terms):
                ledger.hold(Kind.BUFFERS, x * c)
        # Beside them the rows of the positions, then their sum.
        ledger.chain(Kind.BUFFERS, x * local.parameter, x * c if local.casts else 0)
        ledger.hold(Kind.BUFFERS, x * c)
        ledger.drop(Kind.BUFFERS, x * c + x * (c if local.casts else local.parameter))
        if local.settings.model.embd_pdrop:
            ledger.hold(Kind.ACTIVATIONS, x * c)
            ledger.touch(Kind.BUFFERS, x * c)

    def embed_backward(self, ledger: Ledger, *, first: bool, tied: bool) -> None:
        """dx, among the buffers -> gradients of both tables; the token table's is added to that of
        the head where they are ``tied`` on this rank."""
        local, c, p, dx = self.local, self.local.compute, self.local.parameter, self.local.x
        if local.settings.model.embd_pdrop:
            ledger.touch(Kind.BUFFERS, dx * c)
            ledger.drop(Kind.ACTIVATIONS, dx * c)
        with ledger.during(Kind.BUFFERS, dx * p if local.casts else 0):
            ledger.hold(Kind.BUFFERS, self.positions * p)
        if first and not local.summed(((), local.mode.outer.hidden)):
            ledger.hold(Kind.GRADIENTS, self.positions * p)
        ledger.drop(Kind.BUFFERS, self.positions * p)

        gathers = local.over(local.mode.lookup.scatter_y).size > 1
        gathered = self.looked_up * c if gathers else dx * c
        if gathers:
            ledger.hold(Kind.BUFFERS, gathered)
            ledger.drop(Kind.BUFFERS, dx * c)
        rows = ledger.chain(
            Kind.BUFFERS,
            self.looked_up * p if local.casts else 0,
            0 if self.whole_vocabulary else self.looked_up * p,
        )
        ledger.hold(Kind.BUFFERS, self.table.gathered * p)
        settle(ledger, local, self.table)
        ledger.drop(Kind.BUFFERS, rows + gathered)
        ledger.drop(Kind.ACTIVATIONS, self.kept_ids)
        if tied and local.zero != 1:
            ledger.drop(Kind.BUFFERS, settled(local, self.table))  # added to the head's
            accumulate(ledger, local, self.table, first=first)
        else:
            accumulate(ledger, local, self.table, first=first and not tied)

    def loss(self, ledger: Ledger) -> None:
        """x, kept -> dx and dw among the logits.

        Chunk by chunk (models/parallel/loss.py): logits in the compute type, which become their
        gradient, beside them in float32 the softmax of a block of them; then the chunk's term of
        dx, and that of dw piece by piece.
        """
        local, x = self.local, self.local.x * self.local.compute
        norm_forward(ledger, local, Kind.ACTIVATIONS)
        ledger.become(Kind.ACTIVATIONS, Kind.BUFFERS, x)  # none needs the norm's output later
        table = use(ledger, local, self.head.weight)
        dw = self.head.weight.gathered * local.parameter
        ledger.hold(Kind.LOGITS, x + dw)
        rows = local.rows(local.mode.outer)
        size = min(self.chunk, rows)
        for chunk in (size, rows - size if rows < 2 * size else size):
            if chunk:
                self._chunk(ledger, chunk / rows)
        ledger.touch(Kind.LOGITS, dw)  # turned over
        ledger.drop(Kind.BUFFERS, table + x)

    @cached_property
    def chunk(self) -> int:
        """Rows of x in a chunk of the loss."""
        over, on_tokens = self.head.over_x, not self.head.on_hidden
        gathered = over.size if on_tokens else 1
        budget = CHUNK_BYTES[self.local.device] // gathered
        return self.local.settings.loss_chunk or self._words(budget, self.local.compute)

    def _words(self, budget: int, entry: int) -> int:
        """How many times the rank's vocabulary fits in ``budget`` bytes."""
        return max(1, budget // (self.table.outputs * entry))

    def _chunk(self, ledger: Ledger, share: float) -> None:
        """One chunk of the loss, with a ``share`` of the rows."""
        local, head, c = self.local, self.head, self.local.compute
        logits, words, cuda = round(head.y * share), self.table.outputs, local.device == "cuda"

        x = round(head.gathered_x * share) * c if head.over_x.size > 1 else 0
        ledger.chain(Kind.BUFFERS, x, x if head.on_hidden else 0)
        scattered(ledger, local, logits, head.over_y.size, c, kind=Kind.LOGITS)
        block = logits
        if not cuda and words == local.settings.model.vocab_size:
            block = min(logits, self._words(BLOCK_BYTES, FLOAT32) * words)
        # Cast before; a result of another type than its terms is copied on a CPU.
        copies = 1 + local.casts * (1 if cuda else 2)
        ledger.touch(Kind.LOGITS, copies * block * max(FLOAT32, c))
        dlogits = logits * c * head.over_y.size if head.over_y.size > 1 else 0
        ledger.hold(Kind.LOGITS, dlogits)
        dx = round(local.x * share)
        scattered(ledger, local, dx, head.over_x.size, c, copied=head.on_hidden)
        piece = min(head.weight.gathered, self._words(CHUNK_BYTES[local.device], FLOAT32) * words)
        # An addition of two types makes a copy on a CPU.
        copied = 0 if cuda or not local.casts else local.parameter
        ledger.touch(Kind.LOGITS, piece * (c + copied))
        ledger.drop(Kind.LOGITS, dlogits + logits * c)
        ledger.drop(Kind.BUFFERS, dx * c + x)

    def loss_backward(self, ledger: Ledger, *, first: bool, tied: bool) -> None:
        """-> dx among the buffers, and the table's gradient, which waits there for that of the
        lookup where they are ``tied`` on this rank. x of the last norm is freed."""
        local, weight = self.local, self.head.weight
        dx, dw = local.x * local.compute, weight.gathered * local.parameter
        # Scaled anew on a GPU, since reading the scale would wait for it.
        with ledger.during(Kind.LOGITS, dx + dw if local.device == "cuda" else 0):
            ledger.become(Kind.LOGITS, Kind.BUFFERS, dx + dw)
            settle(ledger, local, weight)
        if not tied or local.zero == 1:
            accumulate(ledger, local, weight, first=first)
        norm_backward(ledger, local)
        ledger.drop(Kind.ACTIVATIONS, dx)
