"""The one matmul of every mode (see models/parallel/mode.py for the algebra)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.parallel.collectives import gather, scatter
from models.parallel.context import Partition
from models.parallel.mode import Product
from models.parallel.zero import Pieces


class Matmul(torch.autograd.Function):
    """y = reduce_scatter_c( all_gather_a(x) @ all_gather_b(w) ) + bias

    x [T_local, H_local] in the compute type, w [I_local, O_local] and bias [O_scattered] in the
    parameter type, y in the compute type. Gradients of w and bias are reduced in the parameter
    type; activations travel in the compute type.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        product: Product,
        pieces: Pieces,
        part: Partition,
    ) -> Tensor:
        xs, ws = gathered_x(x, product, part), pieces.gather(w, part)
        added = None if bias is None else bias.to(part.compute)
        if over := part.axis(product.scatter_y):
            y = scatter(part.matmul(xs, ws), over, "T")
            y = y if added is None else y.add_(added)
        else:
            y = part.matmul(xs, ws, added)
        ctx.save_for_backward(*((xs, ws) if part.keep_gathers else (x,)))
        # The parameter itself, which may be stale no sooner than after backward.
        ctx.weight, ctx.biased = w, bias is not None
        ctx.product, ctx.pieces, ctx.part = product, pieces, part
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        # Detached: a gradient that is put off would keep the whole graph, with the inputs' own.
        x, *gathered = (tensor.detach() for tensor in ctx.saved_tensors)
        weight, product, pieces, part = ctx.weight, ctx.product, ctx.pieces, ctx.part
        dbias = dy.sum(0, dtype=weight.dtype) if ctx.biased else None
        dys = gather(dy, part.axis(product.scatter_y), "T")
        dx = dw = None
        if ctx.needs_input_grad[0]:
            ws = gathered[0] if gathered else pieces.gather(weight, part)
            dx = part.matmul(dys, ws.t())
            if product.gather_x:
                dx = scatter(dx, part.axis(product.gather_x.axis), product.gather_x.on)
        if ctx.needs_input_grad[1]:

            def gradient() -> Tensor | None:
                xs = x if gathered else gathered_x(x, product, part)
                piece: Tensor | None = pieces.scatter(weight, part.matmul(xs.t(), dys), part)
                return piece

            dw = part.deferred.gradient(weight, gradient)
        return dx, dw, dbias, None, None, None


def gathered_x(x: Tensor, product: Product, part: Partition) -> Tensor:
    """all_gather_a(x)"""
    if product.gather_x is None:
        return x
    return gather(x, part.axis(product.gather_x.axis), product.gather_x.on)
