"""Initial values, drawn in seeded blocks: every layout starts from equal parameters, and no rank
allocates more than its shard and a block."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from models.parallel.context import derive_seed
from models.parallel.shard import Shard

BLOCK = 256
"""Edge of a block. A rank draws fewer than this many extra entries on each side of its shard."""


@torch.no_grad()
def init_normal_(local: Tensor, shard: Shard, *, std: float, seed: int, name: str) -> None:
    """Fill ``local`` with ``shard`` of a global tensor from a normal distribution of mean 0 and
    standard deviation ``std``.

    The global tensor is divided into blocks of at most ``BLOCK`` entries a side. A block's values
    depend on ``seed``, ``name`` and its place only, and are drawn in float32 on the CPU whatever
    the type and device of ``local``. Padding is zero.
    """
    local.zero_()
    spans = [
        range(offset // BLOCK, -(-(offset + size) // BLOCK)) if size else range(0)
        for offset, size in zip(shard.offset, shard.size, strict=True)
    ]
    generator = torch.Generator()
    for block in product(*spans):
        starts = [n * BLOCK for n in block]
        ends = [min(s + BLOCK, n) for s, n in zip(starts, shard.shape, strict=True)]
        generator.manual_seed(derive_seed(seed, name, *block))
        values = torch.empty([e - s for s, e in zip(starts, ends, strict=True)])
        values.normal_(0.0, std, generator=generator)
        inner, outer = [], []
        for start, end, offset, size in zip(starts, ends, shard.offset, shard.size, strict=True):
            low, high = max(start, offset), min(end, offset + size)
            inner.append(slice(low - start, high - start))
            outer.append(slice(low - offset, high - offset))
        local[tuple(outer)] = values[tuple(inner)].to(local)
