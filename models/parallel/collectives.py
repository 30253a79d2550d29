"""Collectives along a named axis, which count every byte that this rank sends.

On CPU tensors over gloo the collectives are direct exchanges (isend and irecv between all pairs):
gloo's own reduce-scatter sends as many bytes as an all-reduce, and its latency is 2 to 10 times the
latency of a direct exchange. Otherwise they are the collectives of torch.distributed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

from models.parallel import compilation
from models.parallel.clock import PartClock
from models.parallel.tuning import SMALL_BYTES

CPU = torch.device("cpu")

# torch 2.13 renamed both and warns about the old names; torch 2.11 has only the old names.
_all_gather: Callable[..., object] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter: Callable[..., object] = getattr(
    dist, "reduce_scatter_single", dist.reduce_scatter_tensor
)


@dataclass
class Traffic:
    """Counts calls and the bytes that this rank sent, by (axis, collective), and times the waits
    for other ranks."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    clock: PartClock = field(default_factory=PartClock)

    def count(self, axis: str, collective: str, sent: int) -> None:
        self.calls[axis, collective] += 1
        self.bytes[axis, collective] += sent

    def reset(self) -> None:
        self.calls.clear()
        self.bytes.clear()


@dataclass(frozen=True, kw_only=True)
class Handle:
    """A communication in progress, like ``torch.distributed.Work``."""

    axis: Axis
    works: Sequence[dist.Work | None] = ()
    """Its operations."""
    then: Callable[[], object] | None = None
    """Puts the result in place once the operations are done; it may communicate, too."""
    buffers: tuple[Tensor, ...] = ()
    """Memory that the operations use and nothing else keeps alive."""

    def wait(self) -> None:
        """Block until the result is in place. Call it once; handles of an axis are waited for in
        the same order on all of its ranks."""
        if self.works:
            with self.axis.traffic.clock.waiting():
                for work in self.works:
                    assert work is not None
                    self.axis._wait(work)
        if self.then is not None:
            self.then()


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One rank's position on an axis: ``size`` ranks, of which it is number ``index``.

    ``group`` is None if ``size`` is 1; every method then returns its input unchanged. All ranks of
    the axis call the collectives in the same order, with equal shapes.
    """

    name: str
    size: int
    index: int
    group: dist.ProcessGroup | None
    traffic: Traffic

    def all_gather(self, x: Tensor) -> Tensor:
        """Gather x [...] of each rank into [size, ...], by index. Sends (size - 1) x bytes of x."""
        if self.group is None:
            return x.unsqueeze(0)
        if torch.compiler.is_compiling():
            blocks: Tensor = compilation.all_gather(x, self.name, self.size)
            return blocks
        x = x.contiguous()
        self.traffic.count(self.name, "all_gather", (self.size - 1) * x.nbytes)
        out = x.new_empty((self.size, *x.shape))
        if self._uses_gloo_pairs(x):
            self._exchange([x] * self.size, list(out)).wait()
        else:
            with self.traffic.clock.waiting():
                _all_gather(out.view(-1), x.view(-1), group=self.group)
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Sum x [size, ...] over the ranks and return [...], the entry of this rank's index. Sends
        (size - 1) / size x bytes of x."""
        if self.group is None:
            return x.squeeze(0)
        x = x.contiguous()
        self.traffic.count(self.name, "reduce_scatter", (self.size - 1) * x[0].nbytes)
        if self._uses_gloo_pairs(x):
            parts = torch.empty_like(x)
            self._exchange(list(x), list(parts)).wait()
            return _add(parts)
        out = x.new_empty(x.shape[1:])
        with self.traffic.clock.waiting():
            _reduce_scatter(out.view(-1), x.view(-1), group=self.group)
        return out

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum x over the ranks, in place, and return it. Sends 2 (size - 1) / size x bytes of x (a
        small x up to size - 1)."""
        if self.group is not None and torch.compiler.is_compiling():
            return x.copy_(compilation.all_reduce(x, self.name))
        self.start_all_reduce(x).wait()
        return x

    def start_all_reduce(self, x: Tensor) -> Handle:
        """Start to sum a contiguous x over the ranks, in place."""
        if self.group is None:
            return Handle(axis=self)
        assert x.is_contiguous()
        if not self._uses_gloo_pairs(x):
            self.traffic.count(self.name, "all_reduce", 2 * (self.size - 1) * x.nbytes // self.size)
            staged = self._staged(x) if x.device.type == "cpu" else x
            work = dist.all_reduce(staged, group=self.group, async_op=True)
            return Handle(axis=self, works=[work], then=_copying(staged, x), buffers=(staged,))
        flat = x.view(-1)
        if flat.nbytes <= SMALL_BYTES or flat.numel() < self.size:
            self.traffic.count(self.name, "all_reduce", (self.size - 1) * x.nbytes)
            parts = flat.new_empty((self.size, flat.numel()))
            exchange = self._exchange([flat] * self.size, list(parts))
            return replace(exchange, then=lambda: flat.copy_(_add(parts)))
        # A remainder that does not divide makes the last piece longer.
        self.traffic.count(self.name, "all_reduce", 2 * (self.size - 1) * x.nbytes // self.size)
        pieces = list(flat.tensor_split(self.size))
        mine = pieces[self.index]
        contributions = mine.new_empty((self.size, mine.numel()))
        exchange = self._exchange(pieces, list(contributions))

        def add_then_gather() -> None:
            mine.copy_(_add(contributions))
            self._exchange([mine] * self.size, pieces).wait()

        return replace(exchange, then=add_then_gather)

    def start_all_to_all(self, send: Sequence[Tensor], receive: Sequence[Tensor]) -> Handle:
        """Start to send send[j] to index j and to receive receive[j] from it, for all j, of any
        sizes. All are contiguous; those of this rank's own index are empty."""
        if sent := sum(x.nbytes for x in send):
            self.traffic.count(self.name, "all_to_all", sent)
        if self._backend != "gloo":
            work = dist.all_to_all(list(receive), list(send), group=self.group, async_op=True)
            return Handle(axis=self, works=[work], buffers=(*send, *receive))
        staged = [self._staged(x) for x in receive]
        given = [self._staged(x) for x in send]

        def put_in_place() -> None:
            for x, arrived in zip(receive, staged, strict=True):
                if x is not arrived:
                    x.copy_(arrived)

        return replace(self._exchange(given, staged), then=put_in_place, buffers=tuple(given))

    def swap(self, x: Tensor, peer: int) -> Tensor:
        """Send x to the rank at index ``peer`` and receive its x of the same shape."""
        if self.group is None or peer == self.index:
            return x
        x = x.contiguous()
        self.traffic.count(self.name, "swap", x.nbytes)
        staged = self._staged(x)
        out = torch.empty_like(staged)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, staged, group=self.group, group_peer=peer),
                dist.P2POp(dist.irecv, out, group=self.group, group_peer=peer),
            ]
        )
        Handle(axis=self, works=works).wait()
        return out.to(x.device)

    def start_send(self, x: Tensor, peer: int) -> Handle:
        """Start to send x to the rank at index ``peer``. Do not change x before the handle's
        ``wait``. Sends and receives of two ranks match in their order."""
        self.traffic.count(self.name, "send", x.nbytes)
        staged = self._staged(x.contiguous())
        work = dist.isend(staged, group=self.group, group_dst=peer)
        return Handle(axis=self, works=[work], buffers=(staged,))

    def start_receive(self, x: Tensor, peer: int) -> Handle:
        """Start to receive into x from the rank at index ``peer``."""
        staged = self._staged(x)
        work = dist.irecv(staged, group=self.group, group_src=peer)
        return Handle(axis=self, works=[work], then=_copying(staged, x), buffers=(staged,))

    def _staged(self, x: Tensor) -> Tensor:
        """Return x on a device that the backend can send from: gloo has no point-to-point for CUDA
        tensors, and NCCL supports no CPU tensors, such as gradients of offloaded weights."""
        if self._backend == "gloo":
            return x.cpu()
        return x.cuda() if self._backend == "nccl" else x

    @cached_property
    def _backend(self) -> str:
        """Name of the group's backend. torch computes it anew in each call."""
        return str(dist.get_backend(self.group))

    def _uses_gloo_pairs(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and self._backend == "gloo"

    def _exchange(self, send: list[Tensor], receive: list[Tensor]) -> Handle:
        """Start to send send[j] to index j and to receive receive[j] from it, for all j that are
        not empty."""
        assert self.group is not None
        others = [(self.index + step) % self.size for step in range(1, self.size)]
        # The methods of the group: dist.isend and dist.irecv spend half of the time of a small
        # exchange on the checks of their arguments.
        works = [self.group.recv([receive[j]], j, 0) for j in others if receive[j].numel()]
        works += [self.group.send([send[j]], j, 0) for j in others if send[j].numel()]
        own_part = receive[self.index]
        if own_part.data_ptr() != send[self.index].data_ptr():
            own_part.copy_(send[self.index])
        return Handle(axis=self, works=works)

    def _wait(self, work: dist.Work) -> None:
        assert self.group is not None
        if self._backend == "gloo":
            # The default timeout of gloo's point-to-point is the one at the group's creation.
            work.wait(self.group._get_backend(CPU).options._timeout)
        else:
            work.wait()


def _copying(staged: Tensor, x: Tensor) -> Callable[[], object] | None:
    """Return a function that copies ``staged`` to x; None if they are one tensor."""
    return None if staged is x else lambda: x.copy_(staged)


def _add(parts: Tensor) -> Tensor:
    """Sum parts [size, ...] in the order of ranks, so that all ranks round alike. The result is a
    new tensor: a view would keep all parts alive."""
    return parts[0] + parts[1] if len(parts) == 2 else parts.sum(0)


Dim = Literal["T", "H"]


def gather(x: Tensor, axis: Axis | None, dim: Dim) -> Tensor:
    """Gather x [T, H] of all ranks along its tokens (T) or features (H)."""
    if axis is None:
        return x
    blocks = axis.all_gather(x)
    if dim == "T":
        return rearrange(blocks, "n t h -> (n t) h")
    return rearrange(blocks, "n t h -> t (n h)")


def scatter(y: Tensor, axis: Axis | None, dim: Dim) -> Tensor:
    """Sum y [T, H] over all ranks and return this rank's part of its tokens (T) or features (H)."""
    if axis is None:
        return y
    if dim == "T":
        return axis.reduce_scatter(rearrange(y, "(n t) h -> n t h", n=axis.size))
    return axis.reduce_scatter(rearrange(y, "t (n h) -> n t h", n=axis.size))
