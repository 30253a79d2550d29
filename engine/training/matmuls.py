"""The libraries that multiply matrices, and the choice between them."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import UserError
from engine.world.processor import Processor, this_processor
from models.parallel.context import MatMul, torch_matmul


def onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """By oneDNN, which torch leaves aside for float32 on a CPU."""
    # Inductor has a lowering of its own for this operator, which fails on weights that change.
    multiply = onednn_op if torch.compiler.is_compiling() else _onednn
    y: Tensor = multiply(a, b, bias)
    return y


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return y


@torch.library.custom_op("cuboid::onednn", mutates_args=())
def onednn_op(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """The same, as an operator that a compiler does not look into."""
    return _onednn(a, b, bias)


@onednn_op.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


MATMULS: dict[str, MatMul] = {"torch": torch_matmul, "onednn": onednn}


MARGIN_FLOPS = 2**24
"""Below this, oneDNN's cost of a call (some 20 us) takes away what its arithmetic gains."""


def choose_matmul(
    compute: torch.dtype,
    device: torch.device,
    flops: int,
    *,
    requested: str | None = None,
    processor: Processor | None = None,
) -> str:
    """Choose the library of float32 matmuls on a CPU, of which the smallest has so many ``flops``;
    everywhere else torch's own is used.

    The choice is a function of the processor, the shapes and the setting ``requested``
    (``matmul``), never of a timing: two libraries round differently, so a timing would decide the
    bits of the result. oneDNN is taken only where it was measured to be far ahead: torch.mm calls
    MKL, which leaves AVX-512 aside on AMD's processors (2048^3 on Zen 5, one thread: 119 against
    261 GFLOP/s). With AVX2 both are equally fast on AMD's, and MKL is twice as fast on Intel's.

    Raises:
        UserError: the library that was asked for cannot multiply here.
    """
    if compute != torch.float32:
        return "torch"
    on_cpu, built = device.type == "cpu", torch.backends.mkldnn.is_available()
    if requested == "onednn" and not (on_cpu and built):
        why = "this torch was built without oneDNN" if on_cpu else "oneDNN multiplies on CPUs only"
        raise UserError(f"matmul='onednn': {why}; accepted here: 'torch', None")
    if requested is not None or not (on_cpu and built):
        return requested or "torch"
    vendor = (processor or this_processor()).vendor
    mkl = torch.backends.mkl.is_available()
    ahead = vendor == "AuthenticAMD" and cpu_capability() == "AVX512" and mkl
    return "onednn" if ahead and flops >= MARGIN_FLOPS else "torch"


def cpu_capability() -> str:
    """Return the vector instructions that torch uses on this CPU: AVX512, AVX2, DEFAULT ..."""
    return torch.backends.cpu.get_cpu_capability()
