"""Pieces of whole tensors, as layers hold them."""

from __future__ import annotations

from torch import Tensor

from engine.training.gradients import replicated_axes
from models.parallel.context import ParallelContext
from models.parallel.mode import ActivationSharding
from models.parallel.shard import Shard


def piece(whole: Tensor, activation: ActivationSharding, part: ParallelContext) -> Tensor:
    """What this rank holds of a whole activation [T, H]."""
    rows = part.rows(whole.shape[0], activation.tokens)
    columns = part.rows(whole.shape[1], activation.hidden)
    return whole[rows, columns].clone()


def summed(gradient: Tensor, box: Shard, part: ParallelContext) -> Tensor:
    """A parameter's gradient by the one rule: over every axis that does not cut it."""
    total = gradient.clone()
    for axis in replicated_axes(box, part.summed_axes):
        part.axes[axis].all_reduce(total)
    return total
