"""Head and cross-entropy fused, in chunks of tokens: the full logits are never allocated.

Each chunk's gradient is computed in the forward pass (as in Liger's fused linear cross-entropy, Hsu
et al. 2024), so only dx and dw are saved and nothing is recomputed. The vocabulary stays sharded
over the inner hidden axis (vocabulary-parallel cross-entropy, Shoeybi et al. 2019, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.parallel.collectives import Axis, gather, scatter
from models.parallel.context import ParallelContext
from models.parallel.kernels import LossKernels
from models.parallel.matmul import gathered_x
from models.parallel.shard import Shard
from models.parallel.targets import IGNORED
from models.parallel.tuning import BLOCK_BYTES, chunk_bytes, chunk_rows
from models.parallel.weight_sharding import WeightSharding


@dataclass(frozen=True, kw_only=True)
class Head:
    """The table of the head and the number of tokens in a chunk of the loss."""

    parallel: ParallelContext
    shard: Shard
    weight_sharding: WeightSharding
    chunk: int | None = None
    observers: list[Callable[[Tensor, Tensor], None]] = field(default_factory=list)
    """Called with the logits [rows, vocabulary_local] and targets [rows] of each part of a loss."""

    @property
    def vocabulary(self) -> Axis | None:
        (name,) = self.parallel.mode.up.weight_out or (None,)
        return self.parallel.axis(name)

    @property
    def counts_loss(self) -> bool:
        """True if this rank adds its rows' loss to the sum. Ranks with equal rows and different
        shards of the vocabulary all have the loss of these rows; one of them counts it."""
        return self.vocabulary is None or self.vocabulary.index == 0

    def chunks(self, tokens: int, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield chunks of this rank's rows of x, each with the numbers, in the micro-batch, of the
        rows of its logits.

        The micro-batch has ``tokens`` rows, of which this rank has ``rows`` in the outer sharding.
        Logits are gathered over axis a and scattered over axis c, and so are the numbers of their
        rows.
        """
        parallel, up = self.parallel, self.parallel.mode.up
        size = self.chunk or self._default_chunk(rows)
        gathers = parallel.axis(up.gather_x.axis) if up.gather_x and up.gather_x.on == "T" else None
        scatters = parallel.axis(up.scatter_y)
        for start in range(0, rows, size):
            chunk = slice(start, min(start + size, rows))
            first_row = parallel.rows(tokens, parallel.mode.outer.tokens).start
            number = torch.arange(
                first_row + chunk.start, first_row + chunk.stop, device=parallel.device
            )
            if gathers:  # the gathered axis varies fastest, so its blocks are ``rows`` apart
                first = number - gathers.index * rows
                number = torch.cat([first + block * rows for block in range(gathers.size)])
            if scatters:
                number = number.tensor_split(scatters.size)[scatters.index]
            yield chunk, number

    def logits(self, x_gathered: Tensor, w_gathered: Tensor) -> Tensor:
        """Return the logits [rows, vocabulary_local] of gathered x and the gathered table."""
        up = self.parallel.mode.up
        return scatter(
            self.parallel.matmul(x_gathered, w_gathered.t()), self.parallel.axis(up.scatter_y), "T"
        )

    def blocks(self, logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a chunk's logits and targets, ``block`` rows at a time."""
        size = self.block(len(logits))
        return zip(logits.split(size), targets.split(size), strict=True)

    def block(self, rows: int) -> int:
        """Return the number of rows in one softmax: few enough for the caches of a CPU; all
        ``rows`` where kernel launches or exchanges would cost more than the caches save."""
        if self.parallel.device.type != "cpu" or self.vocabulary:
            return rows
        return self._rows_within(BLOCK_BYTES, torch.float32)

    @property
    def piece(self) -> int:
        """The number of rows of dw [hidden, vocabulary] that one matmul computes."""
        return self._rows_within(chunk_bytes(self.parallel.device.type), torch.float32)

    def new_gradient(self, w_gathered: Tensor, dtype: torch.dtype) -> Tensor:
        """Return zeros for the gradient of the gathered table, transposed: [hidden, vocabulary].

        A CPU transposes x for the matmul faster than the logits. A GPU's matmul writes in either
        order: entries lie in the order of the table, and nothing is transposed afterwards.
        """
        if self.parallel.kernels.adds_products:
            return w_gathered.new_zeros(w_gathered.shape, dtype=dtype).t()
        return w_gathered.new_zeros(w_gathered.t().shape, dtype=dtype)

    def _default_chunk(self, rows: int) -> int:
        parallel, gathered = self.parallel, self.parallel.mode.up.gather_x
        ranks = parallel.sizes[gathered.axis] if gathered and gathered.on == "T" else 1
        row_bytes = ranks * self.shard.local[0] * parallel.compute.itemsize
        return chunk_rows(rows, row_bytes, parallel.device.type, parallel.kernels.row_multiple)

    def _rows_within(self, budget: int, dtype: torch.dtype) -> int:
        """Return the number of rows of [rows, vocabulary_local] that fit ``budget`` bytes, at
        least 1."""
        return max(1, budget // (self.shard.local[0] * dtype.itemsize))


class HeadLoss(torch.autograd.Function):
    """The sum over targets of -log softmax(x @ w^T)[target], times ``scale``.

    x [T_local, hidden_local] in the outer sharding, w [vocabulary_local, hidden_local], targets [T]
    of the whole micro-batch. ``scale`` is 1 / the number of targets in the global batch, times the
    loss scale of fp16; it is applied before gradients are cast. The result is this rank's share:
    the loss is the sum over all ranks of the data and tensor axes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, targets: Tensor, scale: float, head: Head
    ) -> Tensor:
        parallel, up = head.parallel, head.parallel.mode.up
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        w_gathered = head.weight_sharding.gather(w, parallel)
        dx = torch.empty_like(x) if needs_grad else None
        dw = head.new_gradient(w_gathered, w.dtype) if needs_grad else None
        loss = x.new_zeros((), dtype=torch.float64 if w.dtype == torch.float64 else torch.float32)
        for chunk, rows in head.chunks(len(targets), len(x)):
            x_gathered = gathered_x(x[chunk], up, parallel)
            logits = head.logits(x_gathered, w_gathered)
            for block, ids in head.blocks(logits, targets[rows]):
                for observe in head.observers:
                    observe(block, ids)
                block_loss = cross_entropy(block, ids, scale, head, needs_grad)
                if head.counts_loss:
                    loss += block_loss
            if dx is None or dw is None:
                continue
            dy_gathered = gather(logits, parallel.axis(up.scatter_y), "T")
            dxs = parallel.matmul(dy_gathered, w_gathered)
            if up.gather_x:
                dxs = scatter(dxs, parallel.axis(up.gather_x.axis), up.gather_x.on)
            dx[chunk] = dxs
            for sums, features in zip(
                dw.split(head.piece), x_gathered.t().split(head.piece), strict=True
            ):
                parallel.add_product(sums, features, dy_gathered)
            # Free this chunk before the next one is allocated.
            del x_gathered, logits, block, dy_gathered, dxs
        if dw is not None:
            ctx.save_for_backward(dx, dw.t().contiguous())
            ctx.weight, ctx.head = w, head
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        dx, dw = ctx.saved_tensors
        if g.device.type != "cpu" or g.item() != 1.0:  # reading a GPU's g would wait for it
            dx, dw = dx.mul_(g.to(dx.dtype)), dw.mul_(g)
        return (
            dx,
            ctx.head.weight_sharding.scatter(ctx.weight, dw, ctx.head.parallel),
            None,
            None,
            None,
        )


def cross_entropy(
    logits: Tensor, targets: Tensor, scale: float, head: Head, needs_grad: bool
) -> Tensor:
    """Return the loss of some rows. If ``needs_grad``, overwrite the logits with their gradient.

    logits [rows, vocabulary_local], targets [rows]. Each rank computes a local softmax; log-sum-exp
    and the target's logit are then merged over the vocabulary's axis in one collective.
    """
    if (kernels := head.parallel.kernels.loss) is not None:
        return fused_cross_entropy(logits, targets, scale, head, needs_grad, kernels)
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if head.shard.is_padded:
        # Too small for any share of a softmax, even if the rank has no other column.
        x[:, head.shard.size[0] :] = torch.finfo(x.dtype).min / 2
    counted = targets != IGNORED
    column, here = local_columns(targets, head)
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
    if needs_grad:
        p.scatter_add_(1, column, here.unsqueeze(1).to(p.dtype).neg_())
        torch.mul(p, counted.unsqueeze(1).to(p.dtype).mul_(scale), out=logits)
    return ((total - picked) * counted).sum() * scale


def fused_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    scale: float,
    head: Head,
    needs_grad: bool,
    kernels: LossKernels,
) -> Tensor:
    """Compute ``cross_entropy`` with the kernels of the device; the loss and the gradient differ by
    rounding."""
    column, here = local_columns(targets, head)
    column, size = column.where(here, -1), head.shard.size[0]
    total, picked = kernels.row_statistics(logits, column, size)
    counted = (targets != IGNORED).to(total.dtype)
    if axis := head.vocabulary:
        pieces = axis.all_gather(torch.stack((total, picked)))
        total, picked = pieces[:, 0].logsumexp(0), pieces[:, 1].sum(0)
    if needs_grad:
        kernels.write_gradient(logits, column, size, total, counted * scale)
    return ((total - picked) * counted).sum() * scale


def local_columns(targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Return each target's column in this rank's shard of the vocabulary, and a mask that is true
    for targets inside the shard."""
    column = targets - head.shard.offset[0]
    return column, (targets != IGNORED) & (column >= 0) & (column < head.shard.size[0])


@torch.no_grad()
def loss_and_top_k(
    x: Tensor, w: Tensor, targets: Tensor, head: Head, tops: Sequence[int]
) -> Tensor:
    """Return the sum over targets of -log softmax(x @ w^T)[target] and, for each k of ``tops``, the
    number of targets among the k most likely ids: float64 [1 + len(tops)].

    Arguments, chunks and this rank's share are as in HeadLoss.
    """
    w_gathered = head.weight_sharding.gather(w, head.parallel)
    sums = torch.zeros(1 + len(tops), dtype=torch.float64, device=x.device)
    for chunk, rows in head.chunks(len(targets), len(x)):
        x_gathered = gathered_x(x[chunk], head.parallel.mode.up, head.parallel)
        for block, ids in head.blocks(head.logits(x_gathered, w_gathered), targets[rows]):
            ranks = target_ranks(block, ids, head)[ids != IGNORED]
            loss = cross_entropy(block, ids, 1.0, head, needs_grad=False)
            if head.counts_loss:
                sums += torch.stack([loss.double(), *((ranks < top).sum() for top in tops)])
    return sums


def target_ranks(logits: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Return the number of ids that are more likely than each target, int64 [rows]; of equal logits
    the lower id is more likely.

    logits [rows, vocabulary_local], targets [rows]. An all-reduce sends the target's logit, which
    one shard of the vocabulary has, to all shards; another adds their counts.
    """
    column, here = local_columns(targets, head)
    picked = logits.gather(1, column.where(here, 0).unsqueeze(1)).where(here.unsqueeze(1), 0)
    if axis := head.vocabulary:
        axis.all_reduce(picked)
    held = logits[:, : head.shard.size[0]]
    lower = torch.arange(held.shape[1], device=held.device) < column.unsqueeze(1)
    count = ((held > picked) | ((held == picked) & lower)).sum(1)
    return axis.all_reduce(count) if axis else count
