"""Head and cross-entropy in one, in chunks of tokens: the full logits are never held.

Each chunk's gradient is formed in the forward pass (as in Liger's fused linear cross-entropy, Hsu
et al. 2024), so nothing is kept but dx and dw, and nothing is recomputed. The vocabulary stays cut
over the inner hidden axis (vocabulary-parallel cross-entropy, Shoeybi et al. 2019, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.parallel.collectives import Axis, gather, scatter
from models.parallel.context import Partition
from models.parallel.matmul import gathered_x
from models.parallel.shard import Box
from models.parallel.tuning import BLOCK_BYTES, CHUNK_BYTES
from models.parallel.zero import Pieces

IGNORED = -100
"""A target that carries no weight, as in torch's cross_entropy."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the loss needs to know of the head: its table, and how many tokens a chunk has."""

    part: Partition
    box: Box
    pieces: Pieces
    chunk: int | None = None

    @property
    def vocabulary(self) -> Axis | None:
        (name,) = self.part.mode.up.weight_out or (None,)
        return self.part.axis(name)

    @property
    def counts_loss(self) -> bool:
        """Ranks that share rows but not vocabulary all know the rows' loss; one of them reports."""
        return self.vocabulary is None or self.vocabulary.index == 0

    def chunks(self, tokens: int, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Chunks of this rank's outer rows, with the rows of the micro-batch that their logits are.

        ``tokens`` in the micro-batch, of which this rank holds ``rows`` in the outer layout. The
        logits of a chunk are its rows gathered over a, then scattered over c; so are their numbers.
        """
        part, up = self.part, self.part.mode.up
        size = self.chunk or self._default_chunk()
        gathers = part.axis(up.gather_x.axis) if up.gather_x and up.gather_x.on == "T" else None
        scatters = part.axis(up.scatter_y)
        for start in range(0, rows, size):
            chunk = slice(start, min(start + size, rows))
            own = part.rows(tokens, part.mode.outer.tokens).start
            number = torch.arange(own + chunk.start, own + chunk.stop, device=part.device)
            if gathers:  # the gathered axis cuts tokens fastest, so its blocks are ``rows`` apart
                first = number - gathers.index * rows
                number = torch.cat([first + block * rows for block in range(gathers.size)])
            if scatters:
                number = number.tensor_split(scatters.size)[scatters.index]
            yield chunk, number

    def logits(self, xs: Tensor, ws: Tensor) -> Tensor:
        """Of a chunk's gathered x and the gathered table: [rows, vocabulary_local]."""
        up = self.part.mode.up
        return scatter(self.part.matmul(xs, ws.t()), self.part.axis(up.scatter_y), "T")

    def blocks(self, logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A chunk's logits and targets, so many rows at a time."""
        size = self.block(len(logits))
        return zip(logits.split(size), targets.split(size), strict=True)

    def block(self, rows: int) -> int:
        """How many of a chunk's rows to take the softmax of at once: few enough for the caches of
        a CPU; all of them where kernel launches or exchanges cost more than that gains."""
        if self.part.device.type != "cpu" or self.vocabulary:
            return rows
        return self._words(BLOCK_BYTES, torch.float32)

    @property
    def piece(self) -> int:
        """How many rows of dw [hidden, vocabulary] to make at once."""
        return self._words(self._budget, torch.float32)

    def _default_chunk(self) -> int:
        gathered = self.part.mode.up.gather_x
        rows = self.part.sizes[gathered.axis] if gathered and gathered.on == "T" else 1
        return self._words(self._budget // rows, self.part.compute)

    @property
    def _budget(self) -> int:
        return CHUNK_BYTES.get(self.part.device.type, CHUNK_BYTES["cpu"])

    def _words(self, budget: int, dtype: torch.dtype) -> int:
        """How many times the rank's vocabulary fits in ``budget`` bytes."""
        return max(1, budget // (self.box.local[0] * dtype.itemsize))


class HeadLoss(torch.autograd.Function):
    """The sum over targets of -log softmax(x @ w^T)[target], times ``scale``.

    x [T_local, hidden_local] outer, w [vocabulary_local, hidden_local], targets [T] of the whole
    micro-batch. ``scale`` is 1 / the number of targets in the global batch (times fp16's loss
    scale): it enters before gradients are cast. Returns this rank's share; the sum over all ranks
    of the data and tensor axes is the loss.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, targets: Tensor, scale: float, head: Head
    ) -> Tensor:
        part, up = head.part, head.part.mode.up
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        ws = head.pieces.gather(w, part)
        dx = torch.empty_like(x) if wanted else None
        # [hidden, vocabulary]: x is turned over to be multiplied, not the far larger logits.
        dw = ws.new_zeros((ws.shape[1], ws.shape[0]), dtype=w.dtype) if wanted else None
        loss = x.new_zeros((), dtype=torch.float64 if w.dtype == torch.float64 else torch.float32)
        for chunk, rows in head.chunks(len(targets), len(x)):
            xs = gathered_x(x[chunk], up, part)
            logits = head.logits(xs, ws)
            for block, ids in head.blocks(logits, targets[rows]):
                block_loss = cross_entropy(block, ids, scale, head, wanted)
                if head.counts_loss:
                    loss += block_loss
            if dx is None or dw is None:
                continue
            dys = gather(logits, part.axis(up.scatter_y), "T")
            dxs = part.matmul(dys, ws)
            if up.gather_x:
                dxs = scatter(dxs, part.axis(up.gather_x.axis), up.gather_x.on)
            dx[chunk] = dxs
            for sums, features in zip(dw.split(head.piece), xs.t().split(head.piece), strict=True):
                sums.add_(part.matmul(features, dys))
            del xs, logits, block, dys, dxs  # or the next chunk is made beside this one
        if dw is not None:
            ctx.save_for_backward(dx, dw.t().contiguous())
            ctx.weight, ctx.head = w, head
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        dx, dw = ctx.saved_tensors
        if g.device.type != "cpu" or g.item() != 1.0:
            dx, dw = dx * g.to(dx.dtype), dw * g
        return dx, ctx.head.pieces.scatter(ctx.weight, dw, ctx.head.part), None, None, None


def cross_entropy(
    logits: Tensor, targets: Tensor, scale: float, head: Head, wanted: bool
) -> Tensor:
    """Loss of some rows; where ``wanted``, their logits become its gradient, in place.

    logits [rows, vocabulary_local], targets [rows]. Each rank's softmax is local; log-sum-exp and
    the picked logit are then merged over the vocabulary's axis in one exchange.
    """
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if head.box.padded:
        # Never wins a softmax, even alone.
        x[:, head.box.size[0] :] = torch.finfo(x.dtype).min / 2
    counted = targets != IGNORED
    column, here = columns(targets, head)
    column = column.where(here, 0).unsqueeze(1)
    picked = x.gather(1, column).squeeze(1)
    p = torch.softmax(x, 1)
    # The largest p is e^(largest x - log-sum-exp) and no less than 1 / vocabulary: a safe log.
    total = x.amax(1) - p.amax(1).log()
    if axis := head.vocabulary:
        local = total
        pieces = axis.all_gather(torch.stack((local, picked * here)))
        total, picked = pieces[:, 0].logsumexp(0), pieces[:, 1].sum(0)
        p.mul_((local - total).exp_().unsqueeze(1))
    if wanted:
        p.scatter_add_(1, column, here.unsqueeze(1).to(p.dtype).neg_())
        torch.mul(p, counted.unsqueeze(1).to(p.dtype).mul_(scale), out=logits)
    return ((total - picked) * counted).sum() * scale


def columns(targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Where each target is in this rank's part of the vocabulary, and whether it is there."""
    column = targets - head.box.offset[0]
    return column, (targets != IGNORED) & (column >= 0) & (column < head.box.size[0])


@torch.no_grad()
def scores(x: Tensor, w: Tensor, targets: Tensor, head: Head, tops: Sequence[int]) -> Tensor:
    """The sum over targets of -log softmax(x @ w^T)[target], and for each of ``tops`` how many
    targets are among so many likeliest: float64 [1 + len(tops)].

    Arguments and shares are those of HeadLoss, and so are the chunks.
    """
    ws = head.pieces.gather(w, head.part)
    sums = torch.zeros(1 + len(tops), dtype=torch.float64, device=x.device)
    for chunk, rows in head.chunks(len(targets), len(x)):
        xs = gathered_x(x[chunk], head.part.mode.up, head.part)
        for block, ids in head.blocks(head.logits(xs, ws), targets[rows]):
            place = places(block, ids, head)[ids != IGNORED]
            loss = cross_entropy(block, ids, 1.0, head, wanted=False)
            if head.counts_loss:
                sums += torch.stack([loss.double(), *((place < top).sum() for top in tops)])
    return sums


def places(logits: Tensor, targets: Tensor, head: Head) -> Tensor:
    """How many entries of the vocabulary are likelier than each target, int64 [rows]; of equals the
    lower id is.

    logits [rows, vocabulary_local], targets [rows]. The parts of the vocabulary are told the
    target's logit, which one of them has, and add up what they count.
    """
    column, here = columns(targets, head)
    picked = logits.gather(1, column.where(here, 0).unsqueeze(1)).where(here.unsqueeze(1), 0)
    if axis := head.vocabulary:
        axis.all_reduce(picked)
    held = logits[:, : head.box.size[0]]
    lower = torch.arange(held.shape[1], device=held.device) < column.unsqueeze(1)
    count = ((held > picked) | ((held == picked) & lower)).sum(1)
    return axis.all_reduce(count) if axis else count
