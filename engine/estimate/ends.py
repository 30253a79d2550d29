"""What the two ends of a model allocate on one rank: the embeddings, and the head with its loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from engine.estimate.block import FLOAT32, norm_backward, norm_forward, norm_statistics
from engine.estimate.ledger import Kind, Ledger
from engine.estimate.local import Linear, Local
from engine.estimate.products import arrive, gathered_x, scattered
from models.parallel.limits import CHUNK_BYTES


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The token table is cut like the *up* weight w [hidden, vocabulary] of the logits."""

    local: Local

    @cached_property
    def head(self) -> Linear:
        """The matmul of all logits of a micro-batch."""
        model = self.local.settings.model
        return self.local.up(model.n_embd, model.vocab_size)

    @cached_property
    def vocabulary(self) -> int:
        """Entries of the rank's part of the vocabulary, padding included."""
        return self.head.bias

    @cached_property
    def looked_up(self) -> int:
        """Entries of what a rank looks up in its part of the vocabulary, before its rows are
        summed with those of the other parts."""
        lookup = self.local.mode.lookup
        width = self.head.w // self.vocabulary * self.local.over(lookup.gather_w).size
        return self.local.tokens // self.local.pieces(lookup.tokens) * width

    @cached_property
    def positions(self) -> int:
        """Entries of the rank's position table."""
        local = self.local
        hidden = local.width(local.settings.model.n_embd, local.mode.outer.hidden)
        return local.settings.model.block_size * hidden

    def embed(self, ledger: Ledger) -> None:
        """Token ids -> x, among the buffers."""
        local, lookup = self.local, self.local.mode.lookup
        c, p, x = local.compute, local.parameter, local.x
        table, sum_over = self._lookup_table(ledger), local.over(lookup.scatter_y).size
        ledger.hold(Kind.BUFFERS, self.looked_up * p)
        if self.vocabulary < local.settings.model.vocab_size:
            ledger.touch(Kind.BUFFERS, self.looked_up * p)  # rows of other parts are zeroed
        cast = self.looked_up * c if local.casts else 0
        with ledger.during(Kind.BUFFERS, cast):
            terms = self.looked_up * c if local.direct and sum_over > 1 else 0
            ledger.touch(Kind.BUFFERS, terms + self.looked_up // sum_over * c)
        ledger.drop(Kind.BUFFERS, self.looked_up * p + table)
        ledger.hold(Kind.BUFFERS, x * c)
        ledger.chain(Kind.BUFFERS, x * p, x * c if local.casts else 0)  # the positions' rows
        ledger.hold(Kind.BUFFERS, x * c)
        ledger.drop(Kind.BUFFERS, 2 * x * c)
        if local.settings.model.embd_pdrop:
            ledger.hold(Kind.ACTIVATIONS, x * c)
            ledger.touch(Kind.BUFFERS, x * c)

    def embed_backward(self, ledger: Ledger, *, first: bool, tied: bool) -> None:
        """dx, among the buffers -> gradients of both tables; the token table's is added to that of
        the head where they are ``tied`` on this rank."""
        local, lookup, model = self.local, self.local.mode.lookup, self.local.settings.model
        c, p, dx = local.compute, local.parameter, local.x * local.compute
        if model.embd_pdrop:
            ledger.touch(Kind.BUFFERS, dx)
            ledger.drop(Kind.ACTIVATIONS, dx)
        with ledger.during(Kind.BUFFERS, local.x * p if local.casts else 0):
            ledger.hold(Kind.BUFFERS, self.positions * p)
        summed = bool(local.summed(((), local.mode.outer.hidden)))
        arrive(ledger, self.positions * p, keeps=first and not summed)

        gathered = self.looked_up * c if local.over(lookup.scatter_y).size > 1 else 0
        ledger.hold(Kind.BUFFERS, gathered)
        ledger.drop(Kind.BUFFERS, dx)
        rows = ledger.chain(
            Kind.BUFFERS,
            self.looked_up * p if local.casts else 0,
            self.looked_up * p if self.vocabulary < model.vocab_size else 0,
        )
        ranks = local.over(lookup.gather_w).size
        scattered(ledger, local, self.head.w, ranks, p, copied=True)
        ledger.drop(Kind.BUFFERS, rows + gathered)
        if tied:
            ledger.drop(Kind.BUFFERS, self.head.w * p)
            self.head_gradient(ledger, first=first)
        else:
            arrive(ledger, self.head.w * p, keeps=first and not self.head.summed)

    def _lookup_table(self, ledger: Ledger) -> int:
        """Bytes of the table gathered for a lookup, none where it is used as it is."""
        ranks = self.local.over(self.local.mode.lookup.gather_w).size
        size = self.head.w * ranks * self.local.parameter if ranks > 1 else 0
        return ledger.chain(Kind.BUFFERS, size, size)

    def loss(self, ledger: Ledger) -> None:
        """x, among the buffers -> dx and dw among the logits, x kept for the last norm.

        Chunk by chunk (models/parallel/loss.py): logits in the compute type, beside them in float32
        their log-softmax, which becomes their gradient; then the chunk's terms of dx and dw.
        """
        local, c = self.local, self.local.compute
        norm_forward(ledger, local, Kind.ACTIVATIONS)
        ledger.drop(Kind.ACTIVATIONS, local.x * c)  # counted as ``normed``
        table = self._head_table(ledger)
        ledger.hold(Kind.LOGITS, local.x * c)
        rows = local.rows(local.mode.outer)
        size = min(self.chunk, rows)
        for number, chunk in enumerate((size, rows - size if rows < 2 * size else size)):
            if chunk:
                self._chunk(ledger, chunk / rows, first=number == 0)
        self._scatter_dw(ledger)
        ledger.drop(Kind.BUFFERS, table)

    @cached_property
    def normed(self) -> int:
        """Bytes of the last norm's output, which the loop holds from one micro-batch to the next."""
        return self.local.x * self.local.compute

    @cached_property
    def chunk(self) -> int:
        """Rows of x in a chunk of the loss."""
        over, on_tokens = self.head.over_x, not self.head.on_hidden
        gathered = over.size if on_tokens else 1
        default = CHUNK_BYTES[self.local.device] // (self.vocabulary * FLOAT32 * gathered)
        return self.local.settings.loss_chunk or max(1, default)

    def _chunk(self, ledger: Ledger, share: float, *, first: bool) -> None:
        """One chunk of the loss, with a ``share`` of the rows."""
        local, head, c = self.local, self.head, self.local.compute
        whole = max(FLOAT32, c)
        logits, dw = round(head.y * share), head.gathered_w

        x = round(head.gathered_x * share) * c if head.over_x.size > 1 else 0
        ledger.chain(Kind.BUFFERS, x, x if head.on_hidden else 0)
        scattered(ledger, local, logits, head.over_y.size, c, kind=Kind.LOGITS)
        with ledger.during(Kind.LOGITS, logits * whole if local.casts else 0):
            ledger.hold(Kind.LOGITS, logits * whole)
        gathers = head.over_y.size if head.over_y.size > 1 else 0
        dlogits = ledger.chain(
            Kind.LOGITS, logits * c if local.casts else 0, logits * c * gathers
        )
        dx = round(local.x * share)
        scattered(ledger, local, dx, head.over_x.size, c, copied=head.on_hidden)
        ledger.hold(Kind.LOGITS, dw * c)
        if local.casts:
            # An addition of two types makes a copy on a CPU.
            again = 0 if local.device == "cuda" else dw * local.parameter
            ledger.touch(Kind.LOGITS, dw * local.parameter if first else again)
        ledger.drop(Kind.LOGITS, dw * c)
        if first:
            ledger.hold(Kind.LOGITS, dw * local.parameter)
        ledger.drop(Kind.LOGITS, dlogits + logits * (whole + c))
        ledger.drop(Kind.BUFFERS, dx * c + x)

    def loss_backward(self, ledger: Ledger, *, first: bool, tied: bool) -> None:
        """-> dx among the buffers, and the table's gradient, which waits for that of the lookup
        where they are ``tied`` on this rank. x of the last norm is freed."""
        local = self.local
        dx, dw = local.x * local.compute, self.head.w * local.parameter
        if local.device == "cuda":  # scaled anew, since reading the scale would wait for the device
            ledger.touch(Kind.LOGITS, dx + dw)
        ledger.become(Kind.LOGITS, Kind.BUFFERS, dx)
        if not tied:
            self.head_gradient(ledger, first=first)
        norm_backward(ledger, local)
        ledger.drop(Kind.ACTIVATIONS, dx)

    def head_gradient(self, ledger: Ledger, *, first: bool) -> None:
        """dw among the logits becomes the table's gradient, or is added to it."""
        size = self.head.w * self.local.parameter
        ledger.drop(Kind.LOGITS, size)
        if first and not self.head.summed:
            ledger.hold(Kind.GRADIENTS, size)

    def _head_table(self, ledger: Ledger) -> int:
        """Bytes of the table cast and gathered for the head, none where it is used as it is."""
        local, head = self.local, self.head
        gathered = head.gathered_w * local.compute if head.over_w.size > 1 else 0
        cast = head.w * local.compute if local.casts else 0
        return ledger.chain(Kind.BUFFERS, cast, gathered, gathered)

    def _scatter_dw(self, ledger: Ledger) -> None:
        """dw of the gathered table is summed and scattered."""
        head, p = self.head, self.local.parameter
        if head.over_w.size > 1:
            whole = head.gathered_w * p
            ledger.touch(Kind.BUFFERS, whole * (1 + self.local.direct) + head.w * p)
            ledger.drop(Kind.LOGITS, whole - head.w * p)
