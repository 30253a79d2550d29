"""Registry of optimizers: every module in ``engine/optim/optimizers`` is an optimizer, called after
the module."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING

from engine import discover
from engine.optim.parameter_groups import NamedParameter, decay_groups

if TYPE_CHECKING:
    import torch

    from engine.config.sections.optimizer import OptimizerSettings


def build_optimizer(
    settings: OptimizerSettings, parameters: Iterable[NamedParameter]
) -> torch.optim.Optimizer:
    """Build the optimizer of ``settings``, fused if torch supports that on the device. The
    optimizer's parameter groups contain the names of the parameters."""
    groups = decay_groups(settings, list(parameters))
    optimizer: torch.optim.Optimizer = _module(settings).build(groups, settings)
    return optimizer


def states_of(settings: OptimizerSettings) -> int:
    """Return the number of states of a parameter's size that the optimizer has."""
    states: int = _module(settings).states(settings)
    return states


def is_by_entry(settings: OptimizerSettings) -> bool:
    """Return whether the optimizer updates each entry of a parameter independently, so that
    parameters can be updated in slices. True only if the optimizer's module sets BY_ENTRY."""
    return getattr(_module(settings), "BY_ENTRY", False)


def _module(settings: OptimizerSettings) -> ModuleType:
    return discover.load("engine.optim.optimizers", settings.type)
