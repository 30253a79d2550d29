"""What a rank keeps between steps: parameters, gradients, optimizer states."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from engine.estimate.ledger import Kind
from engine.estimate.local import Local
from models.parameters import Parameter, parameters
from models.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class Held:
    """A parameter's piece on one rank: entries, padding included, and the axes that its gradient
    is summed over."""

    name: str
    entries: int
    matrix: bool
    summed: tuple[str, ...]


def held(local: Local, layers: range, rank: int) -> list[Held]:
    """The parameters of a virtual stage as ``rank`` has them."""
    return [
        _piece(local, parameter, rank)
        for parameter in parameters(Sizes.of(local.settings.model), local.mode, layers)
    ]


def _piece(local: Local, parameter: Parameter, rank: int) -> Held:
    return Held(
        name=parameter.name,
        entries=prod(local.layout.box(parameter.shape, parameter.cut, rank).local),
        matrix=len(parameter.shape) == 2,
        summed=local.summed(parameter.cut),
    )


@dataclass(frozen=True, kw_only=True)
class State:
    """The training state of one rank; ``chunks`` are its parameters by virtual stage."""

    local: Local
    chunks: Sequence[Sequence[Held]]

    @property
    def _all(self) -> list[Held]:
        return [one for chunk in self.chunks for one in chunk]

    @cached_property
    def parameters(self) -> int:
        """Entries of all parameters."""
        return sum(one.entries for one in self._all)

    @cached_property
    def between_steps(self) -> dict[Kind, int]:
        """Bytes as a step begins: gradients that are not in a bucket are not there."""
        size = self.local.parameter
        buckets = sum(one.entries for one in self._all if one.summed)
        optimizer = self.local.settings.optimizer
        states = importlib.import_module(f"engine.optim.optimizers.{optimizer.type}").states
        return {
            Kind.PARAMETERS: self.parameters * size,
            Kind.GRADIENTS: buckets * size,
            Kind.OPTIMIZER: self.parameters * size * states(optimizer),
        }

    @cached_property
    def vectors(self) -> list[int]:
        """Bytes of gradients of biases and norms that are in no bucket, by virtual stage."""
        size = self.local.parameter
        return [
            size * sum(one.entries for one in chunk if not one.matrix and not one.summed)
            for chunk in self.chunks
        ]

    @property
    def sums(self) -> int:
        """Bytes of all ranks' terms, which gloo's pairs hold while gradients are summed."""
        if not self.local.direct:
            return 0
        return self.local.parameter * sum(one.entries for one in self._all if one.summed)
