"""Optimizers by name: every file in ``engine/optim/optimizers`` is one, found by its file name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from engine import discover

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engine.config.schema import OptimizerSettings

# One of torch's parameter groups: 'params' as (name, parameter) pairs, 'weight_decay'.
Group = dict[str, Any]


class Named(NamedTuple):
    """A parameter as an optimizer wants it.

    ``is_matrix`` tells a weight or an embedding from a bias or a norm by its *global* shape: the
    piece a rank holds does not show it.
    """

    name: str
    parameter: nn.Parameter
    is_matrix: bool


def build_optimizer(
    settings: OptimizerSettings, parameters: Iterable[Named]
) -> torch.optim.Optimizer:
    """The optimizer that ``settings`` ask for, fused where torch has it fused.

    Its groups carry the parameters' names, so that a saved state tells them apart.
    """
    groups = decay_groups(settings, list(parameters))
    optimizer: torch.optim.Optimizer = _module(settings).build(groups, settings)
    return optimizer


def states_of(settings: OptimizerSettings) -> int:
    """Tensors that the optimizer keeps beside each parameter, of its size."""
    states: int = _module(settings).states(settings)
    return states


def is_by_entry(settings: OptimizerSettings) -> bool:
    """Whether an entry's update depends on no other entry, so that parts of a parameter can be
    updated by themselves. Only if the optimizer says so."""
    return getattr(_module(settings), "BY_ENTRY", False)


def decay_groups(settings: OptimizerSettings, parameters: Sequence[Named]) -> list[Group]:
    """One group with weight decay and one without; an empty one is left out."""
    everything = settings.decay == "all"
    decayed = [p for p in parameters if everything or p.is_matrix]
    spared = [p for p in parameters if not (everything or p.is_matrix)]
    return [
        {"params": [(p.name, p.parameter) for p in some], "weight_decay": weight_decay}
        for some, weight_decay in ((decayed, settings.weight_decay), (spared, 0.0))
        if some
    ]


def _module(settings: OptimizerSettings) -> ModuleType:
    return discover.load("engine.optim.optimizers", settings.type)
