"""The sharded matmul that all modes use (see the formulas in models/parallel/mode.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.parallel.collectives import gather, scatter
from models.parallel.context import ParallelContext
from models.parallel.mode import LinearSharding
from models.parallel.weight_sharding import WeightSharding


class ShardedMatmul(torch.autograd.Function):
    """y = reduce_scatter_c( all_gather_a(x) @ all_gather_b(w) ) + bias

    a, b and c are axes of the mode. x [T_local, H_local] and y have the compute type, w [I_local,
    O_local] and bias [O_local] the parameter type. Gradients of w and bias are reduced in the
    parameter type; activations are sent in the compute type.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        sharding: LinearSharding,
        weight_sharding: WeightSharding,
        parallel: ParallelContext,
    ) -> Tensor:
        x_gathered, w_gathered = (
            gathered_x(x, sharding, parallel),
            weight_sharding.gather(w, parallel),
        )
        added = None if bias is None else bias.to(parallel.compute)
        if over := parallel.axis(sharding.scatter_y):
            y = scatter(parallel.matmul(x_gathered, w_gathered), over, "T")
            y = y if added is None else y.add_(added)
        else:
            y = parallel.matmul(x_gathered, w_gathered, added)
        ctx.save_for_backward(*((x_gathered, w_gathered) if parallel.keep_gathers else (x,)))
        # The parameter itself, not a copy: it does not change before the end of backward.
        ctx.weight, ctx.biased = w, bias is not None
        ctx.sharding, ctx.weight_sharding, ctx.parallel = sharding, weight_sharding, parallel
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        # Detached: a deferred gradient would keep the graph of its inputs alive.
        x, *gathered = (tensor.detach() for tensor in ctx.saved_tensors)
        weight, sharding, weight_sharding, parallel = (
            ctx.weight,
            ctx.sharding,
            ctx.weight_sharding,
            ctx.parallel,
        )
        dbias = dy.sum(0, dtype=weight.dtype) if ctx.biased else None
        dy_gathered = gather(dy, parallel.axis(sharding.scatter_y), "T")
        dx = dw = None
        if ctx.needs_input_grad[0]:
            w_gathered = gathered[0] if gathered else weight_sharding.gather(weight, parallel)
            dx = parallel.matmul(dy_gathered, w_gathered.t())
            if sharding.gather_x:
                dx = scatter(dx, parallel.axis(sharding.gather_x.axis), sharding.gather_x.on)
        if ctx.needs_input_grad[1]:

            def gradient() -> Tensor | None:
                x_gathered = x if gathered else gathered_x(x, sharding, parallel)
                shard: Tensor | None = weight_sharding.scatter(
                    weight, parallel.matmul(x_gathered.t(), dy_gathered), parallel
                )
                return shard

            dw = parallel.deferred.gradient(weight, gradient)
        return dx, dw, dbias, None, None, None


def gathered_x(x: Tensor, sharding: LinearSharding, parallel: ParallelContext) -> Tensor:
    """Gather x along axis a of the mode, if any."""
    if sharding.gather_x is None:
        return x
    return gather(x, parallel.axis(sharding.gather_x.axis), sharding.gather_x.on)
