"""The head and its loss alone, forward and backward, with one improvement after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.rates import COMPUTE, seconds_of
from benchmarks.gpu_check.sizes import CheckSizes
from models.parallel.context import ParallelContext
from models.parallel.kernels import DeviceKernels
from models.parallel.layers import TokenEmbedding
from models.parallel.loss import Head, HeadLoss
from models.parallel.tuning import ROW_MULTIPLE

REPEATS = 5


def variants(device: torch.device) -> dict[str, DeviceKernels]:
    """Return the kernels of each variant: none, each one added to those before, all."""
    everything = DeviceKernels.of(device, torch.float32, COMPUTE)
    padded = DeviceKernels(row_multiple=ROW_MULTIPLE["cuda"])
    sums = replace(padded, adds_products=everything.adds_products)
    return {
        "none": DeviceKernels(),
        "padding": padded,
        "sums in place": sums,
        "loss kernels": replace(sums, loss=everything.loss),
    }


def measure_head(sizes: CheckSizes) -> list[dict[str, Any]]:
    """Return a row per variant: seconds, peak bytes, and the distance of its loss and gradients
    from the first variant's."""
    device, tokens = torch.device(sizes.device), sizes.samples * sizes.length
    draw = torch.Generator(device).manual_seed(0)
    x = torch.randn(tokens, sizes.width, device=device, generator=draw).to(COMPUTE)
    table = 0.02 * torch.randn(sizes.vocabulary, sizes.width, device=device, generator=draw)
    targets = torch.randint(sizes.vocabulary, (tokens,), device=device, generator=draw)
    rows, first = list[dict[str, Any]](), list[Tensor]()
    for name, kernels in variants(device).items():
        parallel = replace(
            ParallelContext.single_device(device, dtype=torch.float32, compute=COMPUTE),
            kernels=kernels,
        )
        found, seconds, peak = _one(parallel, x.requires_grad_(), table, targets, sizes)
        first = first or found
        apart = [float((a - b).norm() / b.norm()) for a, b in zip(found, first, strict=True)]
        flops = 6 * tokens * sizes.width * sizes.vocabulary
        rows.append(
            {"name": name, "seconds": seconds, "flops": flops / seconds, "peak": peak}
            | dict(zip(("loss", "dx", "dw"), apart, strict=True))
            | {"complete": kernels.adds_products and kernels.loss is not None}
        )
    return rows


def _one(
    parallel: ParallelContext, x: Tensor, table: Tensor, targets: Tensor, sizes: CheckSizes
) -> tuple[list[Tensor], float, int]:
    """Return loss, dx and dw of one variant, its seconds, and the most bytes beyond its inputs."""
    embedding = TokenEmbedding(parallel, *table.shape, std=0.02)
    shard, weight = embedding.shards["weight"], embedding.weight
    with torch.no_grad():
        weight.zero_()[shard.valid_slices] = table
    head = Head(parallel=parallel, shard=shard, weight_sharding=embedding.as_head)

    def step() -> list[Tensor]:
        loss = HeadLoss.apply(x, weight, targets, 1 / len(targets), head)
        return [loss.detach(), *torch.autograd.grad(loss, (x, weight))]

    cuda = sizes.device == "cuda"
    seconds = seconds_of(step, sizes.device, min(REPEATS, sizes.repeats))
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    loss, dx, dw = step()
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    return [loss.double(), dx.float(), dw[shard.valid_slices]], seconds, peak
