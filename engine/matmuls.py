"""Which library multiplies matrices, and how fast it is here."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from models.parallel.partition import MatMul, torch_matmul


def onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """By oneDNN, which torch leaves aside for float32 on a CPU."""
    # Inductor has a lowering of its own for this operator, which fails on weights that change.
    multiply = opaque if torch.compiler.is_compiling() else _onednn
    y: Tensor = multiply(a, b, bias)
    return y


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return y


@torch.library.custom_op("cuboid::onednn", mutates_args=())
def opaque(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """The same, as an operator that a compiler does not look into."""
    return _onednn(a, b, bias)


@opaque.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


MATMULS: dict[str, MatMul] = {"torch": torch_matmul, "onednn": onednn}


def probe_matmul(compute: torch.dtype, device: torch.device, size: int = 512) -> str:
    """The name of the faster matmul for float32 on this CPU: on AMD's, torch.mm takes the slow
    library (119 against 261 GFLOP/s). Some ten milliseconds; elsewhere torch's own."""
    if device.type != "cpu" or compute != torch.float32 or not torch.backends.mkldnn.is_available():
        return "torch"
    a, b = torch.ones(size, size), torch.ones(size, size)

    def seconds(name: str) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            MATMULS[name](a, b)
            times.append(time.perf_counter() - start)
        return min(times)

    return min(MATMULS, key=seconds)
