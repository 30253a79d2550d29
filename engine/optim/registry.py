"""Registry of optimizers: every module in ``engine/optim/optimizers`` is one, by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from engine import discover

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engine.config.sections.optimizer import OptimizerSettings
    from models.parameters import ParameterKind

Group = dict[str, Any]
"""A parameter group of torch: 'params' as (name, parameter) pairs, 'weight_decay'."""


DECAYING: Mapping[str, frozenset[ParameterKind]] = {
    "linears": frozenset({"linear"}),
    "matrices": frozenset({"linear", "embedding"}),
    "weights": frozenset({"linear", "embedding", "norm"}),
    "all": frozenset({"linear", "embedding", "norm", "bias"}),
}
"""The kinds of parameters with weight decay, by the value of optimizer.decay."""


class NamedParameter(NamedTuple):
    """A parameter with its name and kind."""

    name: str
    parameter: nn.Parameter
    kind: ParameterKind


def build_optimizer(
    settings: OptimizerSettings, parameters: Iterable[NamedParameter]
) -> torch.optim.Optimizer:
    """Build the optimizer of ``settings``, fused if torch supports that on the device. Its groups
    contain the names of the parameters."""
    groups = decay_groups(settings, list(parameters))
    optimizer: torch.optim.Optimizer = _module(settings).build(groups, settings)
    return optimizer


def states_of(settings: OptimizerSettings) -> int:
    """Return the number of states of a parameter's size that the optimizer has."""
    states: int = _module(settings).states(settings)
    return states


def is_by_entry(settings: OptimizerSettings) -> bool:
    """Return whether the optimizer updates each entry independently of the others, so that
    parameters can be updated in slices. True only if its module states BY_ENTRY."""
    return getattr(_module(settings), "BY_ENTRY", False)


def decay_groups(settings: OptimizerSettings, parameters: Sequence[NamedParameter]) -> list[Group]:
    """Divide the parameters into a group with weight decay and one without, omitting empty ones."""
    decayed = [p for p in parameters if p.kind in DECAYING[settings.decay]]
    exempt = [p for p in parameters if p.kind not in DECAYING[settings.decay]]
    return [
        {"params": [(p.name, p.parameter) for p in group], "weight_decay": weight_decay}
        for group, weight_decay in ((decayed, settings.weight_decay), (exempt, 0.0))
        if group
    ]


def _module(settings: OptimizerSettings) -> ModuleType:
    return discover.load("engine.optim.optimizers", settings.type)
