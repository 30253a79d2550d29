"""The parallel context of a rank: the mode's table with the process groups of its axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parallel.collectives import Axis, Traffic
from models.parallel.kernels import DeviceKernels, add_product
from models.parallel.mode import ActivationSharding, Mode
from models.parallel.registry import modes
from models.parallel.rows import ContextExchange, RowOrder
from models.parallel.shard import PartitionSpec, Shard, shard_of
from models.parallel.zero import Zero


class MatmulBackend(Protocol):
    """Computes a [m, k] @ b [k, n] + bias [n] -> [m, n]."""

    def __call__(self, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor: ...


def torch_matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by the library that torch chooses."""
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


DeferredGradients = list[tuple[Tensor, Callable[[], Tensor | None]]]
"""Parameters, each with the function that computes its deferred gradient."""


class WeightStorage(Protocol):
    """Stores weights outside memory between uses. Their parameters have only a shape and a type."""

    def add(self, weight: nn.Parameter) -> None:
        """Store ``weight`` from now on."""

    def holds(self, weight: Tensor) -> bool:
        """Return whether ``weight`` is stored here."""
        ...

    def get(self, weight: Tensor) -> Tensor:
        """Return a copy of the values of ``weight`` in host memory."""
        ...

    def put(self, weight: Tensor, values: Tensor) -> None:
        """Set the values of ``weight``."""


class GradientDeferral:
    """Defers weight gradients, which no other rank waits for, to idle time of a schedule."""

    def __init__(self) -> None:
        self._later: DeferredGradients | None = None

    @contextmanager
    def collect(self) -> Iterator[DeferredGradients]:
        """Append weight gradients to the list instead of computing them, inside the block."""
        self._later, before = [], self._later
        try:
            yield self._later
        finally:
            self._later = before

    def gradient(self, weight: Tensor, compute: Callable[[], Tensor | None]) -> Tensor | None:
        """Return the result of ``compute``, or None if the gradient is deferred."""
        if self._later is None:
            return compute()
        self._later.append((weight, compute))
        return None

    def defers(self, weight: Tensor) -> bool:
        """Return whether the gradient of ``weight`` is deferred. Autograd calls the hook of
        ``weight`` even then, with a gradient of None."""
        return any(weight is other for other, _ in self._later or ())


@dataclass(frozen=True, kw_only=True)
class ParallelContext:
    """The mode, this rank's position on each axis, and the matmul: all that layers depend on."""

    mode: Mode
    axes: Mapping[str, Axis]
    """The mode's own axes, "tensor" (all of them together) and "data"."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    """The type of parameters."""
    compute: torch.dtype = torch.float32
    """The type of activations; weights are cast to it before they are sent."""
    matmul: MatmulBackend = torch_matmul
    kernels: DeviceKernels = field(default_factory=DeviceKernels)
    keep_gathers: bool = False
    """Save gathered x and w for backward instead of gathering them again: time for memory."""
    context: ContextExchange = "gather"
    """The exchange of keys and values of samples that several ranks hold."""
    zero: Zero = field(default_factory=Zero)
    offload_device: torch.device | None = None
    """The device that weights are stored on between uses and that their gradients are copied to;
    None for ``device``."""
    weight_storage: WeightStorage | None = None
    """The storage of weights that are on no device between uses."""
    deferred: GradientDeferral = field(default_factory=GradientDeferral)

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """The number of ranks along each axis."""
        return {name: axis.size for name, axis in self.axes.items()}

    @cached_property
    def index(self) -> Mapping[str, int]:
        """This rank's position along each axis."""
        return {name: axis.index for name, axis in self.axes.items()}

    def add_product(self, sums: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a @ b to ``sums``, in the type of ``sums``."""
        if self.kernels.adds_products:
            add_product(sums, a, b)
        else:
            sums.add_(self.matmul(a, b))

    def axis(self, name: str | None) -> Axis | None:
        """Return the axis of that name; None if its size is 1 or ``name`` is None."""
        axis = self.axes[name] if name else None
        return axis if axis and axis.size > 1 else None

    @classmethod
    def single_device(
        cls, device: torch.device, *, dtype: torch.dtype, compute: torch.dtype
    ) -> ParallelContext:
        """Return the context of an unsharded model on one device, without process groups."""
        traffic = Traffic()
        axes = {
            name: Axis(name=name, size=1, index=0, group=None, traffic=traffic)
            for name in ("tensor", "data", "pipeline", "world")
        }
        serial = modes()["serial"]
        return cls(mode=serial, axes=axes, device=device, dtype=dtype, compute=compute)

    @property
    def summed_axes(self) -> dict[str, Axis]:
        """The axes over which a gradient is summed, unless they shard its parameter."""
        return {name: self.axes[name] for name in (*self.mode.colossal_groups, "data")}

    def shard(self, shape: tuple[int, ...], spec: PartitionSpec, *, row_multiple: int = 1) -> Shard:
        """Return this rank's shard of a parameter of global ``shape``."""
        return shard_of(shape, spec, self.sizes, self.index, row_multiple=row_multiple)

    def read(self, weight: Tensor) -> Tensor:
        """Return the values of this rank's shard of a parameter, from memory or from storage."""
        if self.weight_storage is None or not self.weight_storage.holds(weight):
            return weight.detach()
        return self.weight_storage.get(weight)

    @contextmanager
    def overwrite(self, weight: Tensor) -> Iterator[Tensor]:
        """Yield memory for new values of this rank's shard of a parameter. The block sets all of
        them; then they are written to storage, if the parameter is stored there."""
        if self.weight_storage is None or not self.weight_storage.holds(weight):
            yield weight.detach()
        else:
            values = torch.empty(weight.shape, dtype=weight.dtype)
            yield values
            self.weight_storage.put(weight, values)

    def row_order(self, tokens: int, length: int) -> RowOrder:
        """Return the order of the rows of a micro-batch in samples of ``length`` tokens."""
        return RowOrder.of(self.mode, self.sizes, tokens, length)

    def arrange(self, x: Tensor, length: int, *, padding: int) -> Tensor:
        """Return x [tokens] of a whole micro-batch in the order of its rows, with ``padding`` in
        rows without a token. Returns x itself if that changes nothing."""
        order = self.row_order(len(x), length)
        if order.rows > len(x):
            x = F.pad(x, (0, order.rows - len(x)), value=padding)
        if order.group == 1:
            return x
        return torch.cat([x[tokens.start : tokens.stop] for tokens in order.tokens()])

    def tokens_of_rows(self, rows: int, length: int, axes: tuple[str, ...]) -> Tensor:
        """Return the number of the token of each of this rank's ``rows``, which ``axes`` shard, in
        a micro-batch of samples of ``length`` tokens."""
        every = torch.arange(rows * self.num_shards(axes), device=self.device)
        return self.arrange(every, length, padding=0)[self.rows(len(every), axes)]

    def rows(self, tokens: int, axes: tuple[str, ...]) -> slice:
        """Return this rank's rows of a [tokens, ...] tensor that ``axes`` shard."""
        (rows,) = shard_of((tokens,), (axes,), self.sizes, self.index).slices
        return rows

    @property
    def zero_axes(self) -> tuple[str, ...]:
        """The axes by which ZeRO shards weights, in addition to the mode's axes."""
        return tuple(axis.name for axis in self.zero.axes)

    def tensor_index(self, **index: int) -> int:
        """Return the position along "tensor" of the rank whose positions along the mode's axes are
        this rank's, except those in ``index``."""
        place = 0
        for axis in self.mode.colossal_groups:
            place = place * self.sizes[axis] + index.get(axis, self.index[axis])
        return place

    def num_shards(self, axes: tuple[str, ...]) -> int:
        return prod(self.sizes[axis] for axis in axes)

    def activation_key(self, activation: ActivationSharding) -> tuple[int, ...]:
        """Return a key that differs between ranks with different shards of an activation, the data
        axis included."""
        axes = ("data", *activation.tokens, *activation.hidden)
        return tuple(self.index[axis] for axis in axes)


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed: a function of ``parts`` alone (BLAKE2b), equal on all machines."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
