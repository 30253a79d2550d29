"""Parameter groups: the parameters with weight decay, and those without. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
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


def decay_groups(settings: OptimizerSettings, parameters: Sequence[NamedParameter]) -> list[Group]:
    """Divide the parameters into a group with weight decay and a group without; omit empty
    groups."""
    decayed = [p for p in parameters if p.kind in DECAYING[settings.decay]]
    exempt = [p for p in parameters if p.kind not in DECAYING[settings.decay]]
    return [
        {"params": [(p.name, p.parameter) for p in group], "weight_decay": weight_decay}
        for group, weight_decay in ((decayed, settings.weight_decay), (exempt, 0.0))
        if group
    ]
