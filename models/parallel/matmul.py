"""The one matmul of every mode (see models/parallel/mode.py for the algebra)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.parallel.collectives import gather, scatter
from models.parallel.mode import Product
from models.parallel.partition import Partition


class Matmul(torch.autograd.Function):
    """y = reduce_scatter_c( all_gather_a(x) @ all_gather_b(w) ) + bias

    x [T_local, H_local] in the compute type, w [I_local, O_local] and bias [O_scattered] in the
    parameter type, y in the compute type. Gradients of w and bias are reduced in the parameter
    type; activations travel in the compute type.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, product: Product, part: Partition
    ) -> Tensor:
        xs, ws = gathered_x(x, product, part), gathered_w(w, product, part)
        y = scatter(part.matmul(xs, ws), part.axis(product.scatter_y), "T")
        if bias is not None:
            y = y.add_(bias.to(part.compute))
        kept = (xs, ws) if part.keep_gathers else (x, w)
        ctx.save_for_backward(*kept)
        # The parameter itself, for a gradient that is put off: checkpointing saves detached copies.
        ctx.weight, ctx.product, ctx.part, ctx.biased = w, product, part, bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, w = ctx.saved_tensors
        weight, product, part = ctx.weight, ctx.product, ctx.part
        dbias = dy.sum(0, dtype=weight.dtype) if ctx.biased else None
        dys = gather(dy, part.axis(product.scatter_y), "T")
        dx = dw = None
        if ctx.needs_input_grad[0]:
            ws = w if part.keep_gathers else gathered_w(w, product, part)
            dx = part.matmul(dys, ws.t())
            if product.gather_x:
                dx = scatter(dx, part.axis(product.gather_x.axis), product.gather_x.on)
        if ctx.needs_input_grad[1]:

            def gradient() -> Tensor:
                xs = x if part.keep_gathers else gathered_x(x, product, part)
                dws = part.matmul(xs.t(), dys).to(weight.dtype)
                return scatter(dws, part.axis(product.gather_w), "T")

            dw = part.deferred.gradient(weight, gradient)
        return dx, dw, dbias, None, None


def gathered_x(x: Tensor, product: Product, part: Partition) -> Tensor:
    """all_gather_a(x)"""
    if product.gather_x is None:
        return x
    return gather(x, part.axis(product.gather_x.axis), product.gather_x.on)


def gathered_w(w: Tensor, product: Product, part: Partition) -> Tensor:
    """all_gather_b(w), cast before it travels: half the bytes in bf16."""
    return gather(w.to(part.compute), part.axis(product.gather_w), "T")
