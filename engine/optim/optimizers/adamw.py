"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.optim.fused import has_fused

if TYPE_CHECKING:
    import torch

    from engine.config.schema import OptimizerSettings
    from engine.optim.registry import Group

BY_ENTRY = True  # each entry's update is its own affair


def states(settings: OptimizerSettings) -> int:
    """Tensors kept beside each parameter, of its size: its two moments."""
    return 2


def build(groups: list[Group], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Weight decay shrinks the weights by lr x weight_decay each step, beside the gradient's."""
    import torch

    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=has_fused(groups)
    )
