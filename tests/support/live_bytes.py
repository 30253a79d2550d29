"""Bytes of live tensors, counted operator by operator; works on fake tensors too."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Counts the bytes of live tensors. ``most``: their peak since the start, over registered
    tensors and all results of operators. Inside, autograd does not accumulate in place, though it
    does outside."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now: int = 0
        self.most: int = 0
        for tensor in tensors:
            self._see(tensor)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes or not storage.nbytes():
            return
        self.sizes[key] = storage.nbytes()
        weakref.finalize(storage, self._free, key)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def held(
    model_parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> list[Tensor]:
    """Return a model's parameters, their gradients and their optimizer states."""
    gradients = [p.grad for p in model_parameters if p.grad is not None]
    states = [state for p in model_parameters for state in optimizer.state[p].values()]
    return [*model_parameters, *gradients, *states]
