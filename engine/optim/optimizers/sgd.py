"""Stochastic gradient descent with momentum (Sutskever et al. 2013, in torch's form)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.optim.fused import has_fused

if TYPE_CHECKING:
    import torch

    from engine.config.sections.optimizer import OptimizerSettings
    from engine.optim.parameter_groups import Group

BY_ENTRY = True  # each entry is updated independently of the others


def states(settings: OptimizerSettings) -> int:
    """Return the number of states of a parameter's size: the momentum buffer, if momentum > 0."""
    return 1 if settings.momentum else 0


def build(groups: list[Group], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Build the optimizer. Weight decay is an L2 term: weight_decay x weight is added to the
    gradient."""
    import torch

    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, fused=has_fused(groups)
    )
