"""One rank's view of how the model is cut: the mode's table bound to living axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from models.parallel.collectives import Axis, Traffic
from models.parallel.mode import ActivationSharding, Mode
from models.parallel.registry import modes
from models.parallel.shard import PartitionSpec, Shard, shard_of
from models.parallel.zero import Zero


class MatMul(Protocol):
    """a [m, k] @ b [k, n] + bias [n] -> [m, n]"""

    def __call__(self, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor: ...


def torch_matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """By the library that torch chooses."""
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


DeferredGradients = list[tuple[Tensor, Callable[[], Tensor | None]]]
"""Parameters, and how to compute the gradient that each still lacks."""


class WeightStore(Protocol):
    """Keeps weights that are not in memory between uses; their parameters tell shape and type."""

    def add(self, weight: nn.Parameter) -> None:
        """Keep this one, too."""

    def holds(self, weight: Tensor) -> bool:
        """Whether it is kept here."""
        ...

    def get(self, weight: Tensor) -> Tensor:
        """Its values, in host memory of their own."""
        ...

    def put(self, weight: Tensor, values: Tensor) -> None:
        """Set its values."""


class Deferred:
    """Weight gradients that nobody waits for, put off where a schedule has better to do."""

    def __init__(self) -> None:
        self._later: DeferredGradients | None = None

    @contextmanager
    def collect(self) -> Iterator[DeferredGradients]:
        """Within, gradients of weights are put into the list instead of being computed."""
        self._later, before = [], self._later
        try:
            yield self._later
        finally:
            self._later = before

    def gradient(self, weight: Tensor, compute: Callable[[], Tensor | None]) -> Tensor | None:
        """What ``compute`` gives, or None where it is put off."""
        if self._later is None:
            return compute()
        self._later.append((weight, compute))
        return None

    def holds(self, weight: Tensor) -> bool:
        """Whether the gradient that autograd says it has accumulated is one that was put off."""
        return any(weight is other for other, _ in self._later or ())


@dataclass(frozen=True, kw_only=True)
class ParallelContext:
    """What layers need to know: the mode, this rank's place on its axes, and how to multiply.

    ``axes`` holds the mode's own axes, "tensor" (all of them at once) and "data". ``compute`` is
    the type that activations have and weights are cast to before they travel; parameters keep
    ``dtype``. ``keep_gathers`` trades memory for time: gathered x and w are kept for backward
    instead of being gathered again. Weights stay at ``offload_device`` between uses, where that is
    not the device that computes, or in ``store``; their gradients come back to ``offload_device``.
    """

    mode: Mode
    axes: Mapping[str, Axis]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    compute: torch.dtype = torch.float32
    matmul: MatMul = torch_matmul
    keep_gathers: bool = False
    zero: Zero = field(default_factory=Zero)
    offload_device: torch.device | None = None
    store: WeightStore | None = None
    deferred: Deferred = field(default_factory=Deferred)

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """The number of ranks along each axis."""
        return {name: axis.size for name, axis in self.axes.items()}

    @cached_property
    def index(self) -> Mapping[str, int]:
        """This rank's position along each axis."""
        return {name: axis.index for name, axis in self.axes.items()}

    def axis(self, name: str | None) -> Axis | None:
        """The axis of that name; None where nothing travels along it."""
        axis = self.axes[name] if name else None
        return axis if axis and axis.size > 1 else None

    @classmethod
    def single_device(
        cls, device: torch.device, *, dtype: torch.dtype, compute: torch.dtype
    ) -> ParallelContext:
        """A model that is not cut, on one device and without a process group."""
        traffic = Traffic()
        axes = {
            name: Axis(name=name, size=1, index=0, group=None, traffic=traffic)
            for name in ("tensor", "data", "pipeline", "world")
        }
        serial = modes()["serial"]
        return cls(mode=serial, axes=axes, device=device, dtype=dtype, compute=compute)

    @property
    def summed_axes(self) -> dict[str, Axis]:
        """The axes that a gradient is summed over where they do not cut its parameter."""
        return {name: self.axes[name] for name in (*self.mode.colossal_groups, "data")}

    def shard(self, shape: tuple[int, ...], spec: PartitionSpec) -> Shard:
        """This rank's piece of a parameter of global ``shape``."""
        return shard_of(shape, spec, self.sizes, self.index)

    def read(self, weight: Tensor) -> Tensor:
        """The values of this rank's piece of a parameter, wherever they are."""
        if self.store is None or not self.store.holds(weight):
            return weight.detach()
        return self.store.get(weight)

    @contextmanager
    def overwrite(self, weight: Tensor) -> Iterator[Tensor]:
        """Memory for new values of this rank's piece of a parameter, all of which are to be set."""
        if self.store is None or not self.store.holds(weight):
            yield weight.detach()
        else:
            values = torch.empty(weight.shape, dtype=weight.dtype)
            yield values
            self.store.put(weight, values)

    def rows(self, tokens: int, axes: tuple[str, ...]) -> slice:
        """The rows of a [tokens, ...] tensor that this rank holds when ``axes`` cut it."""
        (rows,) = shard_of((tokens,), (axes,), self.sizes, self.index).slices
        return rows

    @property
    def zero_axes(self) -> tuple[str, ...]:
        """The axes that ZeRO cuts weights by, beside the mode's own."""
        return tuple(axis.name for axis in self.zero.axes)

    def num_shards(self, axes: tuple[str, ...]) -> int:
        return prod(self.sizes[axis] for axis in axes)

    def activation_key(self, activation: ActivationSharding) -> tuple[int, ...]:
        """Differs between ranks that hold different pieces of an activation, data included."""
        axes = ("data", *activation.tokens, *activation.hidden)
        return tuple(self.index[axis] for axis in axes)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a function of ``parts`` alone (BLAKE2b), the same on every machine."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
