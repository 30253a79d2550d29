"""Gradient reduction: each gradient is summed over every axis that does not shard its parameter.

The loss is divided by the global number of targets before backward. So gradients are only summed,
never averaged, whatever share of the targets a rank has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.chunks import ModelChunks
from models.parallel.collectives import Axis, Handle
from models.parallel.shard import Shard
from models.parallel.tuning import BUCKET_BYTES


@dataclass
class Bucket:
    """Gradients that are reduced together, as views into one flat buffer."""

    axes: tuple[Axis, ...]
    """The axes to sum over, one after another."""
    parameters: list[nn.Parameter] = field(default_factory=list)
    pending: int = 0
    """Parameters whose gradients are not complete yet."""
    handle: Handle | None = None
    """The all-reduce in progress."""
    flat: Tensor = field(default_factory=lambda: torch.empty(0))

    def allocate(self) -> None:
        """Allocate the flat buffer and make the ``grad`` of every parameter a view into the buffer,
        so that an all-reduce needs no copies."""
        first = self.parameters[0]
        self.flat = first.new_zeros(sum(p.numel() for p in self.parameters))
        pieces = self.flat.split([p.numel() for p in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def start(self) -> None:
        """Start the all-reduce of the bucket over its first axis; backward continues meanwhile."""
        self.handle = self.axes[0].start_all_reduce(self.flat)


class GradientReducer:
    """Reduces gradients in buckets while backward runs.

    Wrap the backward of the last micro-batch in ``final_backward()``: there a bucket's all-reduce
    starts as soon as all its gradients are complete. Outside, backward only accumulates.
    ``wait()`` completes all buckets. A parameter's shard gives the axes to sum over; parameters
    that are sharded over all axes have no bucket. The two copies of a tied table are summed last.
    """

    def __init__(self, model: ModelChunks) -> None:
        self.model, self.buckets, self.sync_enabled = model, list[Bucket](), False
        self.bucket_of: dict[int, Bucket] = {}
        shards, axes = model.shards(), model.parallel.summed_axes
        open_buckets: dict[tuple[tuple[str, ...], torch.device], Bucket] = {}
        # Backward reaches the last parameters first.
        for name, parameter in reversed(list(model.named_parameters())):
            replicated = replicated_axes(shards[name], axes)
            if not replicated:
                continue
            kind = replicated, parameter.device  # offloaded weights have gradients on the host
            bucket = open_buckets.get(kind)
            if bucket is None or sum(p.nbytes for p in bucket.parameters) > BUCKET_BYTES:
                bucket = open_buckets[kind] = Bucket(tuple(axes[axis] for axis in replicated))
                self.buckets.append(bucket)
            bucket.parameters.append(parameter)
            self.bucket_of[id(parameter)] = bucket
            parameter.register_post_accumulate_grad_hook(self._hook)
        for bucket in self.buckets:
            bucket.allocate()
        self.zero()

    def zero(self) -> None:
        """Set all gradients to zero."""
        for parameter in self.model.parameters():
            if id(parameter) not in self.bucket_of:
                parameter.grad = None
        for bucket in self.buckets:
            bucket.flat.zero_()
            bucket.pending, bucket.handle = len(bucket.parameters), None

    @contextmanager
    def final_backward(self) -> Iterator[None]:
        """Start the all-reduce of each bucket as soon as the backward pass in the block, or the
        part of it, has completed all gradients of the bucket."""
        self.sync_enabled = True
        try:
            yield
        finally:
            self.sync_enabled = False

    @torch.no_grad()
    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        """Add ``gradient``, which autograd did not compute, to the gradient of ``parameter``."""
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad += gradient
        self.mark_ready(parameter)

    def mark_ready(self, parameter: Tensor) -> None:
        """Record that the gradient of ``parameter`` was accumulated. In ``final_backward()`` this
        gradient is then complete, and the last one of a bucket starts the all-reduce of the
        bucket."""
        bucket = self.bucket_of.get(id(parameter))
        if self.sync_enabled and bucket is not None:
            bucket.pending -= 1
            if bucket.pending == 0:
                bucket.start()

    def _hook(self, parameter: Tensor) -> None:
        # Autograd calls the hook for a deferred gradient, too, whose value is None.
        parallel = self.model.parallel
        if not parallel.deferred.defers(parameter) and not parallel.zero.accumulates(parameter):
            self.mark_ready(parameter)

    def wait(self) -> None:
        """Complete the reduction of all gradients. All buckets are reduced over one axis before any
        bucket is reduced over the next axis, so that the all-reduces of the buckets overlap."""
        with self.final_backward():
            for weight, gradient in self.model.parallel.zero.reduce_accumulated():
                self.add(weight, gradient)
        for bucket in self.buckets:
            if bucket.handle is None:
                bucket.start()
        for axis in range(max((len(bucket.axes) for bucket in self.buckets), default=0)):
            for bucket in self.buckets:
                if bucket.handle is not None:
                    bucket.handle.wait()
                more = axis + 1 < len(bucket.axes)
                bucket.handle = (
                    bucket.axes[axis + 1].start_all_reduce(bucket.flat) if more else None
                )
        self._all_reduce_tied()

    @torch.no_grad()
    def _all_reduce_tied(self) -> None:
        """Sum the gradients that the first and the last stage have of a tied table."""
        if self.model.tied is None:
            return
        table = dict(self.model.named_parameters())[self.model.tied]
        pipeline = self.model.parallel.axes["pipeline"]
        assert table.grad is not None
        table.grad += pipeline.swap(table.grad, pipeline.size - 1 - pipeline.index)


def replicated_axes(shard: Shard, axes: Mapping[str, Axis]) -> tuple[str, ...]:
    """Return the axes (of size 2 or more) over which a parameter is replicated, in the order of
    ``axes``."""
    return tuple(a for a, axis in axes.items() if axis.size > 1 and a not in shard.sharded_axes)


def counted_parameters(model: ModelChunks) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and parameters that this rank counts in sums over the whole model.

    Several ranks may hold the same shard. Only the one with index 0 on all axes over which the
    parameter is replicated counts it, and only the first copy of a tied table is counted.
    """
    shards, axes, copies = model.shards(), model.parallel.summed_axes, model.copies
    for name, parameter in model.named_parameters():
        held_by = replicated_axes(shards[name], axes)
        if name not in copies and all(axes[axis].index == 0 for axis in held_by):
            yield name, parameter


@torch.no_grad()
def local_grad_norm_squared(model: ModelChunks) -> Tensor:
    """Return this rank's share of the squared global gradient norm, in float64. The sum of the
    shares of all ranks is ||g||^2.

    """
    grads = [p.grad for _, p in counted_parameters(model) if p.grad is not None]
    if not grads:
        return torch.zeros((), dtype=torch.float64, device=model.parallel.device)
    # Offloaded weights have gradients on another device.
    norms = [norm.to(model.parallel.device) for norm in torch._foreach_norm(grads)]
    return torch.stack(norms).double().square().sum()


@torch.no_grad()
def unscale_and_clip(
    model: ModelChunks, norm: float, limit: float | None, scale: float = 1.0
) -> None:
    """Divide all gradients by the loss ``scale``, and clip them to ``limit`` (Pascanu et al. 2013):
    multiply them by limit / (norm + 1e-6), as torch.nn.utils.clip_grad_norm_ does.

    norm: the global norm of the gradients without the scale.
    limit: None for no clipping.
    """
    factor = 1 / scale
    if limit is not None and norm > limit:
        factor *= limit / (norm + 1e-6)
    if factor != 1.0:
        torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], factor)
