"""Stochastic gradient descent with momentum (Sutskever et al. 2013, in torch's form)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.optim.fused import has_fused
from engine.optim.registry import Group

if TYPE_CHECKING:
    from engine.config.schema import Optimizer


def build(groups: list[Group], settings: Optimizer) -> torch.optim.Optimizer:
    """Weight decay is an L2 term: weight_decay x weight is added to the gradient."""
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, fused=has_fused(groups)
    )
