"""Rates of a device: matmuls at the shapes of a GPT, and attention."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Workload
from benchmarks.gpu_check.sizes import CheckSizes
from benchmarks.gpu_check.traces import kind_of, kinds_of, name_backend, trace_spans
from models.parallel.tuning import ROW_MULTIPLE, chunk_rows

COMPUTE = torch.bfloat16


def case_of(sizes: CheckSizes, *, large: bool = False) -> Workload:
    """Return the measured model, or the large one, as a case of benchmarks/step.py."""
    return Workload(
        layers=sizes.large_layers if large else sizes.layers,
        heads=sizes.large_heads if large else sizes.heads,
        width=sizes.large_width if large else sizes.width,
        vocabulary=sizes.vocabulary,
        samples=sizes.large_samples if large else sizes.samples,
        length=sizes.length,
        precision="bf16",
        device_type=sizes.device,
        compiled=True,
        drawn_on_device=large,
    )


def seconds_of(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the median seconds of a call, on a GPU by CUDA events."""
    for _ in range(3):
        work()
    seconds: list[float] = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def matmul_rate(m: int, k: int, n: int, sizes: CheckSizes) -> float:
    """Return the FLOP/s of a bf16 product [m, k] @ [k, n] of random numbers."""
    a = torch.randn(m, k, device=sizes.device, dtype=COMPUTE)
    b = torch.randn(k, n, device=sizes.device, dtype=COMPUTE)
    out = torch.empty(m, n, device=sizes.device, dtype=COMPUTE)
    seconds = seconds_of(lambda: torch.mm(a, b, out=out), sizes.device, sizes.repeats)
    return 2 * m * k * n / seconds


def matmul_rates(sizes: CheckSizes) -> list[dict[str, Any]]:
    """Return the rates of the three products (forward, dx, dw) of every matmul of the model.

    The head is measured for a chunk of the loss, with both vocabularies.
    """
    tokens, width = sizes.samples * sizes.length, sizes.width
    shapes = {
        "qkv": (tokens, width, 3 * width),
        "proj": (tokens, width, width),
        "fc": (tokens, width, 4 * width),
        "fc proj": (tokens, 4 * width, width),
    }
    for words in (sizes.vocabulary, sizes.padded_vocabulary):
        row_bytes, multiple = COMPUTE.itemsize * words, ROW_MULTIPLE[sizes.device]
        chunk = min(tokens, chunk_rows(tokens, row_bytes, sizes.device, multiple))
        shapes[f"head {words:,}"] = (chunk, width, words)
    square = matmul_rate(sizes.square, sizes.square, sizes.square, sizes)
    rows: list[dict[str, Any]] = [{"name": f"{sizes.square} square", "flops": {"forward": square}}]
    for name, (m, k, n) in shapes.items():
        rates = {
            "forward": matmul_rate(m, k, n, sizes),
            "dx": matmul_rate(m, n, k, sizes),
            "dw": matmul_rate(k, m, n, sizes),
        }
        rows.append({"name": name, "shape": [m, k, n], "flops": rates})
    return rows


def attention(sizes: CheckSizes) -> dict[str, Any]:
    """Return which kernels ran for causal attention at the model's shape, forward and backward,
    and their rate (a causal mask needs half of the products)."""
    shape = (sizes.samples, sizes.heads, sizes.length, sizes.width // sizes.heads)
    q, k, v = (
        torch.randn(shape, device=sizes.device, dtype=COMPUTE, requires_grad=True) for _ in range(3)
    )
    dy = torch.randn(shape, device=sizes.device, dtype=COMPUTE)

    def step() -> Tensor:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(y, (q, k, v), dy)
        return y

    seconds = seconds_of(step, sizes.device, sizes.repeats)
    with TemporaryDirectory(prefix="trace-") as folder:
        spans = trace_spans(step, Path(folder) / "trace.json", sizes.device)
    names = sorted({span.name for span in spans if kind_of(span.name) == "attention"})
    products = 2 * 2 * sizes.samples * sizes.length**2 * sizes.width / 2
    return {
        "backend": name_backend(names),
        "kernels": names,
        "all": kinds_of(spans),
        "milliseconds": 1e3 * seconds,
        "flops": 3.5 * products / seconds,  # two products forward, five backward
    }
