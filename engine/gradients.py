"""The one rule for gradients: each is summed over every axis that does not cut its parameter.

The loss is divided by the global count of targets before backward, so sums are all there is: no
means, whatever the shares of the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.gpt import GPT
from models.parallel.box import Box
from models.parallel.collectives import Axis, Finish
from models.parallel.layers import named_boxes
from models.parallel.limits import BUCKET_BYTES


@dataclass
class Bucket:
    """Gradients that are summed together, as views into one flat buffer."""

    axes: tuple[Axis, ...]
    parameters: list[nn.Parameter] = field(default_factory=list)
    missing: int = 0
    finish: Finish | None = None
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
        self.finish = self.axes[0].start_all_reduce(self.flat)


class GradientSum:
    """Sums gradients in buckets while backward runs.

    Within ``last_round()`` a bucket's sum starts as soon as its last gradient is there; before
    that, micro-batches only add up. ``wait()`` ends all sums. Axes that a parameter is not cut by
    come from its box; where there are none, nothing is bucketed and nothing is sent.
    """

    def __init__(self, model: GPT) -> None:
        self.model, self.buckets, self.armed = model, list[Bucket](), False
        boxes, axes = named_boxes(model), model.part.summed_axes
        open_buckets: dict[tuple[str, ...], Bucket] = {}
        # Backward reaches the last parameters first.
        for name, parameter in reversed(list(model.named_parameters())):
            over = uncut(boxes[name], axes)
            if not over:
                continue
            bucket = open_buckets.get(over)
            if bucket is None or sum(p.nbytes for p in bucket.parameters) > BUCKET_BYTES:
                bucket = open_buckets[over] = Bucket(tuple(axes[axis] for axis in over))
                self.buckets.append(bucket)
            bucket.parameters.append(parameter)
            parameter.register_post_accumulate_grad_hook(self._arrived(bucket))
        for bucket in self.buckets:
            bucket.allocate()

    def zero(self) -> None:
        """Forget the last step's gradients."""
        views = {id(p) for bucket in self.buckets for p in bucket.parameters}
        for parameter in self.model.parameters():
            if id(parameter) not in views:
                parameter.grad = None
        for bucket in self.buckets:
            bucket.flat.zero_()

    @contextmanager
    def last_round(self) -> Iterator[None]:
        """Around the forward and backward pass after which gradients are complete."""
        for bucket in self.buckets:
            bucket.missing, bucket.finish = len(bucket.parameters), None
        self.armed = True
        try:
            yield
        finally:
            self.armed = False

    def wait(self) -> None:
        """End the sums. Buckets go on to their next axis together, so that waits overlap."""
        for bucket in self.buckets:
            if bucket.finish is None:
                bucket.start()
        for axis in range(max((len(bucket.axes) for bucket in self.buckets), default=0)):
            for bucket in self.buckets:
                if bucket.finish is not None:
                    bucket.finish()
                more = axis + 1 < len(bucket.axes)
                bucket.finish = (
                    bucket.axes[axis + 1].start_all_reduce(bucket.flat) if more else None
                )

    def _arrived(self, bucket: Bucket) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            if self.armed:
                bucket.missing -= 1
                if bucket.missing == 0:
                    bucket.start()

        return hook


def uncut(box: Box, axes: Mapping[str, Axis]) -> tuple[str, ...]:
    """The axes (of size 2 or more) that do not cut the box, in the order of ``axes``."""
    return tuple(a for a, axis in axes.items() if axis.size > 1 and a not in box.cut_axes)


@torch.no_grad()
def square_sum(model: GPT) -> Tensor:
    """This rank's share of the squared global gradient norm, in float64.

    Ranks that hold the same piece of a parameter would count it twice: the one with index 0 on
    all axes that do not cut it reports it. The sum of shares over all ranks is ||g||^2.
    """
    boxes, axes = named_boxes(model), model.part.summed_axes
    grads = [
        parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
        and all(axes[axis].index == 0 for axis in uncut(boxes[name], axes))
    ]
    if not grads:
        return torch.zeros((), dtype=torch.float64, device=model.part.device)
    return torch.stack(torch._foreach_norm(grads)).double().square().sum()


@torch.no_grad()
def clip(model: GPT, norm: float, limit: float | None) -> None:
    """Scale all gradients by limit / norm where the global ``norm`` exceeds ``limit`` (Pascanu et
    al. 2013); 1e-6 as in torch.nn.utils.clip_grad_norm_."""
    if limit is None or norm <= limit:
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(grads, limit / (norm + 1e-6))
