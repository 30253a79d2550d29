"""The border between code that torch.compile traces and code that it calls as it is written.

A linear layer that communicates, and attention to samples that ranks share, are called as they are
written: their collectives keep their order, number and bytes, and the state of ZeRO, offloading and
deferred gradients stays in Python. The code between them is traced. A collective in it, such as the
one of a sharded norm, is an operator of which the compiler knows the shape of the result and
nothing more.

Such an operator takes tensors, numbers and strings only, so it names its axis;
``axes_of_compiled_code`` defines the axes that the names refer to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with everything that it calls excluded from tracing."""
    excluded: Callable[P, R] = torch.compiler.disable(function)
    return excluded


class Collectives(Protocol):
    """The collectives of an axis that traced code may call."""

    def all_gather(self, x: Tensor) -> Tensor: ...

    def all_reduce(self, x: Tensor) -> Tensor: ...


_open: dict[str, Collectives] = {}


@contextmanager
def axes_of_compiled_code(axes: Mapping[str, Collectives]) -> Iterator[None]:
    """Let compiled code communicate along ``axes``, by their names, inside the block."""
    before = dict(_open)
    _open.update(axes)
    try:
        yield
    finally:
        _open.clear()
        _open.update(before)


@torch.library.custom_op("cuboid::all_gather", mutates_args=())
def all_gather(x: Tensor, axis: str, size: int) -> Tensor:
    """Gather x [...] of the ``size`` ranks of ``axis`` into [size, ...]."""
    return _open[axis].all_gather(x)


@torch.library.custom_op("cuboid::all_reduce", mutates_args=())
def all_reduce(x: Tensor, axis: str) -> Tensor:
    """Return the sum of x over the ranks of ``axis``."""
    return _open[axis].all_reduce(x.clone(memory_format=torch.contiguous_format))


@all_gather.register_fake
def _(x: Tensor, axis: str, size: int) -> Tensor:
    return x.new_empty(size, *x.shape)


@all_reduce.register_fake
def _(x: Tensor, axis: str) -> Tensor:
    return x.new_empty(x.shape)
