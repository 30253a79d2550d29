"""Kernels of the loss on a GPU: 6 bytes move per bf16 logit, twice read and once written.

Softmax, the target's logit and the gradient are the sums that loss.py computes on a CPU, without a
float32 copy of the logits (as in Liger's cross-entropy, Hsu et al. 2024). A program has one row;
its running maximum and sum are those of Milakov & Gimelshein (2018).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST = 4096
"""Logits of a row that a program loads at once: 16 by each of 256 threads."""
WARPS = 8


@triton.jit
def _statistics(
    logits: tl.tensor,
    columns: tl.tensor,
    total: tl.tensor,
    picked: tl.tensor,
    stride: tl.tensor,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    lanes = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), -3.0e38, tl.float32)  # finite: infinities have no difference
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        at = start + lanes
        # The bound of the load is the padded width: a bound that 16 does not divide would load
        # entry by entry.
        x = tl.load(logits + at, mask=at < WIDTH, other=-float("inf")).to(tl.float32)
        x = tl.where(at < SIZE, x, -float("inf"))
        # One exponential instead of two: either the old sum or the new term has the factor 1.
        difference = x - largest
        factor = tl.exp(-tl.abs(difference))
        sums = tl.where(difference > 0, sums * factor + 1, sums + factor)
        largest = tl.maximum(largest, x)
    top = tl.max(largest, 0)
    sum_exp = tl.sum(sums * tl.exp(largest - top), 0)
    column = tl.load(columns + row)
    target = tl.load(logits + column, mask=column >= 0, other=0.0)
    tl.store(total + row, top + tl.log(sum_exp))
    tl.store(picked + row, target.to(tl.float32))


@triton.jit
def _gradient(
    logits: tl.tensor,
    columns: tl.tensor,
    total: tl.tensor,
    factors: tl.tensor,
    stride: tl.tensor,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = logits + row * stride + at
    x = tl.load(here, mask=at < WIDTH, other=0.0).to(tl.float32)
    p = tl.exp(x - tl.load(total + row))
    p = tl.where(at == tl.load(columns + row), p - 1, p)
    dx = tl.where(at < SIZE, p * tl.load(factors + row), 0.0)
    tl.store(here, dx.to(logits.dtype.element_ty), mask=at < WIDTH)


def row_statistics(logits: Tensor, columns: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return, for each row, the log-sum-exp of its first ``size`` logits (-inf if ``size`` is 0)
    and the logit at its entry of ``columns`` (0 for column -1). Both are float32 [rows].

    logits [rows, width] with ``size`` <= width, columns int64 [rows].
    """
    rows, width = _shape(logits)
    total, picked = torch.empty((2, rows), dtype=torch.float32, device=logits.device)
    block = min(MOST, triton.next_power_of_2(width))
    _statistics[(rows,)](
        *(logits, columns, total, picked, logits.stride(0)),
        WIDTH=width,
        SIZE=size,
        BLOCK=block,
        num_warps=WARPS,
    )
    return total, picked


def write_gradient(
    logits: Tensor, columns: Tensor, size: int, total: Tensor, factors: Tensor
) -> None:
    """Overwrite logits [rows, width] with (softmax - one-hot of the column) x factor; 0 from column
    ``size`` on.

    columns int64 [rows], -1 for none; total: the log-sum-exp over all ranks, and factors, float32
    [rows].
    """
    rows, width = _shape(logits)
    block = min(MOST, triton.next_power_of_2(width))
    _gradient[(rows, triton.cdiv(width, block))](
        *(logits, columns, total, factors, logits.stride(0)),
        WIDTH=width,
        SIZE=size,
        BLOCK=block,
        num_warps=WARPS,
    )


def _shape(logits: Tensor) -> tuple[int, int]:
    rows, width = logits.shape
    assert logits.stride(1) == 1, f"strides {logits.stride()}"
    return rows, width
