"""Mean, maximum, minimum and l2 norm of a tensor, from the moments of its shards."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ENTRIES = 5
"""Count, sum, sum of squares, maximum, minimum: float64 [5] for each tensor."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of all entries of a tensor."""

    mean: float
    max: float
    min: float
    l2: float

    @classmethod
    def of(cls, moments: list[float]) -> Statistics:
        """Return the statistics of a tensor with these ``moments``, in the order of ENTRIES."""
        count, total, squares, largest, smallest = moments
        mean = total / count if count else math.nan
        return cls(mean=mean, max=largest, min=smallest, l2=math.sqrt(squares))


def moments(x: Tensor) -> Tensor:
    """Return the moments (see ENTRIES) of ``x``, on the device of ``x``."""
    if x.numel() == 0:
        return no_moments(x.device)
    found = torch.empty(ENTRIES, dtype=torch.float64, device=x.device)
    found[0] = x.numel()
    found[1] = x.sum(dtype=torch.float64)
    found[2] = torch.linalg.vector_norm(x, dtype=torch.float64).square()
    found[3], found[4] = x.amax(), x.amin()
    return found


def no_moments(device: torch.device) -> Tensor:
    """Return the moments of a tensor without entries."""
    return torch.tensor([0.0, 0.0, 0.0, -math.inf, math.inf], dtype=torch.float64, device=device)


def merge(pieces: Tensor) -> Tensor:
    """Merge the moments of shards, ``pieces`` [shards, ..., 5], to the moments [..., 5] of the
    whole tensors."""
    return torch.cat(
        (
            pieces[..., :3].sum(0),
            pieces[..., 3:4].amax(0),
            pieces[..., 4:].amin(0),
        ),
        -1,
    )
