"""Dropout whose masks do not depend on the layout.

An entry of a mask is a function of its numbers alone: the seed and the step, the sample within the
step, the site in the model, the position and the feature (counter-based: Salmon et al. 2011). So
every sharding, schedule, split into micro-batches, recomputation and resume draws the same mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.parallel.compilation import untraced
from models.parallel.context import ParallelContext, derive_seed
from models.parallel.micro_batch import MicroBatch
from models.parallel.mode import ActivationSharding

GOLDEN = -7046029254386353131
"""The increment of SplitMix64 (Steele, Lea & Flood 2014): 2^64 over the golden ratio, in int64."""
LANES, LANE = 4, 2**16
"""A mixed number of 64 bits decides for this many neighbouring columns, each by 16 of its bits."""


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) of an activation x [T_local, H_local]."""

    def __init__(
        self, parallel: ParallelContext, p: float, activation: ActivationSharding, *site: int | str
    ) -> None:
        super().__init__()
        self.parallel, self.p, self.activation = parallel, p, activation
        self.site = derive_seed(*site)

    def forward(self, x: Tensor, batch: MicroBatch) -> Tensor:
        """Drop entries of x."""
        return self.drop(x, batch) if self.training and self.p > 0.0 else x

    @untraced
    def drop(self, x: Tensor, batch: MicroBatch) -> Tensor:
        """Drop entries of x and scale the others."""
        parallel, hidden, length = self.parallel, self.activation.hidden, batch.length
        token = parallel.tokens_of_rows(len(x), length, self.activation.tokens)
        states = mix(batch.seed, self.site, token // length, token % length)
        features = x.shape[1] * parallel.num_shards(hidden)
        first = parallel.shard((features,), (hidden,)).offset[0]
        mask = dropped(self.p, states, [range(first, first + x.shape[1])])
        return x.masked_fill(mask, 0.0).mul_(1 / (1 - self.p))


def seed_from_sample(seed: int, sample: int) -> int:
    """Return the seed of a micro-batch whose first sample has the number ``sample`` in its step,
    from the seed of the step: the states of ``mix`` depend on the sum alone."""
    return (seed + GOLDEN * sample + 2**63) % 2**64 - 2**63


def mix(seed: int, site: int, samples: Tensor, *counters: Tensor) -> Tensor:
    """Return 64-bit states that are functions of the seed, the site, the samples' numbers in their
    micro-batch and the counters. ``samples`` and ``counters`` broadcast."""
    state = _mix(samples * GOLDEN + seed).bitwise_xor_(site)
    for counter in counters:
        state = _mix(state + counter * GOLDEN)
    return state


def dropped(p: float, states: Tensor, columns: Sequence[range]) -> Tensor:
    """Return the mask [*states.shape, columns] that is true for dropped entries, with probability
    p, rounded to a multiple of 2^-16."""
    limit = min(round(p * LANE), LANE - 1) - LANE // 2
    masks = []
    for some in columns:
        first = some.start // LANES
        words = torch.arange(first, -(-some.stop // LANES), device=states.device)
        lanes = _mix(states.unsqueeze(-1) + words * GOLDEN).view(torch.int16)
        masks.append(lanes[..., some.start - LANES * first :][..., : len(some)] < limit)
    return masks[0] if len(masks) == 1 else torch.cat(masks, -1)


def _mix(z: Tensor) -> Tensor:
    """Mix the bits of int64 entries, in place, by the finaliser of SplitMix64; products wrap."""
    z.bitwise_xor_((z >> 30).bitwise_and_(2**34 - 1)).mul_(-4658895280553007687)
    z.bitwise_xor_((z >> 27).bitwise_and_(2**37 - 1)).mul_(-7723592293110705685)
    return z.bitwise_xor_((z >> 31).bitwise_and_(2**33 - 1))
