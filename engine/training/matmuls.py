"""Matmul libraries, and the choice between them."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import UserError
from engine.world.processor import Processor, this_processor
from models.parallel.context import MatmulBackend, torch_matmul


def onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply with oneDNN, which torch does not use for float32 on CPUs."""
    # Inductor's lowering of this operator fails on weights that change.
    multiply = onednn_op if torch.compiler.is_compiling() else _onednn
    y: Tensor = multiply(a, b, bias)
    return y


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return y


@torch.library.custom_op("cuboid::onednn", mutates_args=())
def onednn_op(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply with oneDNN, as an operator that is opaque to torch.compile."""
    return _onednn(a, b, bias)


@onednn_op.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


MATMULS: dict[str, MatmulBackend] = {"torch": torch_matmul, "onednn": onednn}


MARGIN_FLOPS = 2**24
"""FLOPs of a matmul below which oneDNN's overhead per call (about 20 us) exceeds its gain."""


def choose_matmul(
    compute: torch.dtype,
    device: torch.device,
    flops: int,
    *,
    requested: str | None = None,
    processor: Processor | None = None,
) -> str:
    """Choose the library for float32 matmuls on a CPU. Other matmuls use torch's library.

    The choice depends on the processor, the shapes and the setting, never on a timing: two
    libraries round differently, so a timing would change the bits of the result. oneDNN is chosen
    only on processors on which it was measured to be much faster: torch.mm calls MKL, which does
    not use AVX-512 on AMD processors (2048^3 on Zen 5, one thread: 119 against 261 GFLOP/s). With
    AVX2 both are equally fast on AMD, and MKL is twice as fast on Intel.

    flops: FLOPs of the smallest matmul.
    requested: the setting ``matmul``; None to choose.

    Raises:
        UserError: the requested library does not work on this device.
    """
    if compute != torch.float32:
        return "torch"
    on_cpu, built = device.type == "cpu", torch.backends.mkldnn.is_available()
    if requested == "onednn" and not (on_cpu and built):
        cause = "this torch was built without oneDNN" if on_cpu else "oneDNN runs on CPUs only"
        raise UserError(f"matmul='onednn': {cause}; accepted here: 'torch', None")
    if requested is not None or not (on_cpu and built):
        return requested or "torch"
    vendor = (processor or this_processor()).vendor
    mkl = torch.backends.mkl.is_available()
    faster = vendor == "AuthenticAMD" and cpu_capability() == "AVX512" and mkl
    return "onednn" if faster and flops >= MARGIN_FLOPS else "torch"


def cpu_capability() -> str:
    """Return the vector instructions that torch uses on this CPU: AVX512, AVX2, DEFAULT ..."""
    return torch.backends.cpu.get_cpu_capability()
