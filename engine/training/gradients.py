"""The one rule for gradients: each is summed over every axis that does not cut its parameter.

The loss is divided by the global count of targets before backward, so sums are all there is: no
means, whatever the shares of the ranks.
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
    """Gradients that are summed together, as views into one flat buffer."""

    axes: tuple[Axis, ...]
    parameters: list[nn.Parameter] = field(default_factory=list)
    pending: int = 0
    handle: Handle | None = None
    flat: Tensor = field(default_factory=lambda: torch.empty(0))

    def allocate(self) -> None:
        """One buffer; every ``grad`` becomes a view into it, so nothing is copied to be sent."""
        first = self.parameters[0]
        self.flat = first.new_zeros(sum(p.numel() for p in self.parameters))
        pieces = self.flat.split([p.numel() for p in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def start(self) -> None:
        """Begin the sum over the first axis while backward goes on."""
        self.handle = self.axes[0].start_all_reduce(self.flat)


class GradientReducer:
    """Sums gradients in buckets while backward runs.

    Within ``final_backward()``, around the work that leaves a gradient as it stays, a bucket's sum
    starts as soon as its last gradient is there; before that, micro-batches only add up.
    ``wait()`` ends all sums. Axes that a parameter is not cut by come from its box; where there
    are none, nothing is bucketed and nothing is sent. A tied table's two copies are summed last.
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
            kind = (
                replicated,
                parameter.device,
            )  # weights that are offloaded have their gradients there
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
        """Forget the last step's gradients."""
        for parameter in self.model.parameters():
            if id(parameter) not in self.bucket_of:
                parameter.grad = None
        for bucket in self.buckets:
            bucket.flat.zero_()
            bucket.pending, bucket.handle = len(bucket.parameters), None

    @contextmanager
    def final_backward(self) -> Iterator[None]:
        """Around a backward pass, or a part of one, that leaves its gradients complete."""
        self.sync_enabled = True
        try:
            yield
        finally:
            self.sync_enabled = False

    @torch.no_grad()
    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        """Add what was not computed by autograd."""
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad += gradient
        self.mark_ready(parameter)

    def mark_ready(self, parameter: Tensor) -> None:
        """A gradient was added up; where it is complete, its bucket has one less to wait for."""
        bucket = self.bucket_of.get(id(parameter))
        if self.sync_enabled and bucket is not None:
            bucket.pending -= 1
            if bucket.pending == 0:
                bucket.start()

    def _hook(self, parameter: Tensor) -> None:
        # Autograd calls it for a gradient of None, too.
        parallel = self.model.parallel
        if not parallel.deferred.holds(parameter) and not parallel.zero.holds(parameter):
            self.mark_ready(parameter)

    def wait(self) -> None:
        """End the sums. Buckets go on to their next axis together, so that waits overlap."""
        self.sync_enabled = True
        for weight, gradient in self.model.parallel.zero.reduce_deferred():
            self.add(weight, gradient)
        self.sync_enabled = False
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
        """First and last stage each have a part of a tied table's gradient."""
        if self.model.tied is None:
            return
        table = dict(self.model.named_parameters())[self.model.tied]
        pipeline = self.model.parallel.axes["pipeline"]
        assert table.grad is not None
        table.grad += pipeline.swap(table.grad, pipeline.size - 1 - pipeline.index)


def replicated_axes(shard: Shard, axes: Mapping[str, Axis]) -> tuple[str, ...]:
    """The axes (of size 2 or more) that do not cut the box, in the order of ``axes``."""
    return tuple(a for a, axis in axes.items() if axis.size > 1 and a not in shard.sharded_axes)


@torch.no_grad()
def local_grad_norm_squared(model: ModelChunks) -> Tensor:
    """This rank's share of the squared global gradient norm, in float64.

    Ranks that hold the same piece of a parameter would count it twice: the one with index 0 on
    all axes that do not cut it reports it, and of a tied table's two copies the first. The sum of
    shares over all ranks is ||g||^2.
    """
    shards, axes = model.shards(), model.parallel.summed_axes
    grads = [
        parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
        and name not in model.copies
        and all(axes[axis].index == 0 for axis in replicated_axes(shards[name], axes))
    ]
    if not grads:
        return torch.zeros((), dtype=torch.float64, device=model.parallel.device)
    # Offloaded weights have their gradients on another device.
    norms = [norm.to(model.parallel.device) for norm in torch._foreach_norm(grads)]
    return torch.stack(norms).double().square().sum()


@torch.no_grad()
def unscale_and_clip(
    model: ModelChunks, norm: float, limit: float | None, scale: float = 1.0
) -> None:
    """Divide all gradients by the loss ``scale``, and multiply them by limit / norm where their
    global ``norm`` (without the scale) exceeds ``limit`` (Pascanu et al. 2013); 1e-6 as in
    torch.nn.utils.clip_grad_norm_."""
    factor = 1 / scale
    if limit is not None and norm > limit:
        factor *= limit / (norm + 1e-6)
    if factor != 1.0:
        torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], factor)
