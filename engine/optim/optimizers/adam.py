"""Adam (Kingma and Ba 2015, arXiv 1412.6980), with torch's meaning of weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.optim.fused import has_fused

if TYPE_CHECKING:
    import torch

    from engine.config.sections.optimizer import OptimizerSettings
    from engine.optim.parameter_groups import Group

BY_ENTRY = True  # each entry is updated independently of the others


def states(settings: OptimizerSettings) -> int:
    """Return the number of states of a parameter's size: the two moments."""
    return 2


def build(groups: list[Group], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Build the optimizer. Weight decay is an L2 term: weight_decay x weight is added to the
    gradient."""
    import torch

    return torch.optim.Adam(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=has_fused(groups)
    )
