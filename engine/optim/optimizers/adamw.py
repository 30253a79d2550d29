"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

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
    """Build the optimizer. Weight decay shrinks the weights by the factor 1 - lr x weight_decay in
    each step."""
    import torch

    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=has_fused(groups)
    )
