"""Shards of full tensors, as layers store them."""

from __future__ import annotations

from torch import Tensor

from engine.training.gradients import replicated_axes
from models.parallel.context import ParallelContext
from models.parallel.mode import ActivationSharding
from models.parallel.shard import Shard


def piece(whole: Tensor, activation: ActivationSharding, part: ParallelContext) -> Tensor:
    """Return this rank's shard of a full activation [T, H]."""
    rows = part.rows(whole.shape[0], activation.tokens)
    columns = part.rows(whole.shape[1], activation.hidden)
    return whole[rows, columns].clone()


def summed(gradient: Tensor, box: Shard, part: ParallelContext) -> Tensor:
    """Return a parameter's gradient summed over every axis that does not shard it."""
    total = gradient.clone()
    for axis in replicated_axes(box, part.summed_axes):
        part.axes[axis].all_reduce(total)
    return total
