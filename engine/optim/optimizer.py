"""The interface of the optimizers, and the optimizer that keeps its states in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class StateTensor:
    """A tensor that an optimizer keeps for one parameter, such as Adam's first moment."""

    shape: tuple[int, ...]
    """The parameter's local shape, or () for a number such as the count of steps."""
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Returns the tensor; a state on a disk is read from there."""


class Optimizer(Protocol):
    """An optimizer of the parameters that a rank holds."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups, in torch's form."""
        ...

    def step(self) -> None:
        """Update all parameters that have a gradient."""

    def states(self) -> Iterator[tuple[str, dict[str, StateTensor]]]:
        """Yield the name of each parameter that has states, and its states by name."""
        ...

    def load_states(self, find: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Set the states of each parameter to ``find(name)``, before the first step."""


class ResidentOptimizer:
    """One of torch's optimizers, with its states in memory."""

    def __init__(
        self, inner: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
    ) -> None:
        """Wrap ``inner``. ``named_parameters``: its parameters, in the order of ``states()``."""
        self.inner, self._parameters = inner, dict(named_parameters)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of ``inner``."""
        return self.inner.param_groups

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        self.inner.step()

    def states(self) -> Iterator[tuple[str, dict[str, StateTensor]]]:
        """Yield the name of each parameter that has states, and its states by name."""
        for name, parameter in self._parameters.items():
            if states := in_memory(self.inner.state.get(parameter, {})):
                yield name, states

    def load_states(self, find: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Set the states of each parameter to ``find(name)``, before the first step."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        ordered = [parameter for group in self.param_groups for parameter in group["params"]]
        saved = self.inner.state_dict()
        saved["state"] = {number: find(names[id(p)]) for number, p in enumerate(ordered)}
        self.inner.load_state_dict(saved)  # moves each state to the device that it belongs on


def in_memory(states: Mapping[str, Tensor | None]) -> dict[str, StateTensor]:
    """Describe a parameter's states in memory, without those that are None."""
    return {
        name: StateTensor(shape=tuple(tensor.shape), dtype=tensor.dtype, read=tensor.detach)
        for name, tensor in states.items()
        if tensor is not None
    }
