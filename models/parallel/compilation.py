"""The border between code that torch.compile traces and code that it leaves uncompiled.

A linear layer that communicates, and attention to samples that ranks share, stay uncompiled: the
order, number and bytes of their collectives stay as written, and the state of ZeRO, offloading and
deferred gradients stays in Python. All other code is traced. A collective in traced code, such as
a sharded norm's, is a custom operator; the compiler knows only the shape of its result.

A custom operator takes only tensors, numbers and strings, so the caller passes the name of an axis;
``axes_of_compiled_code`` sets the axis of each name.
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
    """Exclude ``function`` and everything that it calls from tracing by torch.compile."""
    excluded: Callable[P, R] = torch.compiler.disable(function)
    return excluded


class Collectives(Protocol):
    """An axis with the collectives that traced code may call."""

    def all_gather(self, x: Tensor) -> Tensor: ...

    def all_reduce(self, x: Tensor) -> Tensor: ...


_open: dict[str, Collectives] = {}


@contextmanager
def axes_of_compiled_code(axes: Mapping[str, Collectives]) -> Iterator[None]:
    """Let compiled code inside the ``with`` block communicate along ``axes``, given by name."""
    before = dict(_open)
    _open.update(axes)
    try:
        yield
    finally:
        _open.clear()
        _open.update(before)


@torch.library.custom_op("cuboid::all_gather", mutates_args=())
def all_gather(x: Tensor, axis: str, size: int) -> Tensor:
    """Gather x [...] from the ``size`` ranks of ``axis``; return [size, ...]."""
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
