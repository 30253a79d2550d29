"""What a rank sends in a step, by axis and collective, as models/parallel/collectives.py counts it.

Of n ranks, one sends n - 1 times its piece in an all-gather, as much in a reduce-scatter, and
2 (n - 1) / n of the buffer in an all-reduce (Patarasu & Yuan 2009, section 2). So data parallelism
sends 2 (n - 1) / n of the gradients, ZeRO's stages 1 and 2 as much, and stage 3 another (n - 1) / n
(Rajbhandari et al. 2020, section 7), or two more with checkpointing, since a recomputed layer
gathers its weight once more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from engine.estimate.block import Block
from engine.estimate.embedding_head import Ends
from engine.estimate.local_shapes import Linear, Local, Over, Weight
from engine.estimate.result import Sent
from engine.estimate.stage import Course
from models.parallel.tuning import SMALL

FLOAT32, FLOAT64 = 4, 8


@dataclass
class Traffic:
    """Counts what a rank sends."""

    local: Local
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, other: Traffic, times: int = 1) -> None:
        for mine, theirs in ((self.calls, other.calls), (self.bytes, other.bytes)):
            for key, number in theirs.items():
                mine[key] += times * number

    def send(self, axis: str, collective: str, size: int, calls: int = 1) -> None:
        self.calls[axis, collective] += calls
        self.bytes[axis, collective] += size

    def gather(self, over: Over, size: int, calls: int = 1) -> None:
        """An all-gather of pieces of ``size`` bytes."""
        if over.size > 1:
            self.send(over.axis, "all_gather", (over.size - 1) * size, calls)

    def scatter(self, over: Over, size: int, calls: int = 1) -> None:
        """A reduce-scatter into pieces of ``size`` bytes."""
        if over.size > 1:
            self.send(over.axis, "reduce_scatter", (over.size - 1) * size, calls)

    def all_reduce(self, over: Over, entries: int, entry: int) -> None:
        """gloo's pairs gather small ones whole."""
        if over.size > 1:
            size = entries * entry
            small = self.local.direct and (size <= SMALL or entries < over.size)
            all_ranks = size if small else 2 * size
            sent = (over.size - 1) * all_ranks // (1 if small else over.size)
            self.send(over.axis, "all_reduce", sent)

    def sent(self) -> tuple[Sent, ...]:
        """By axis, slowest first, then by collective."""
        order = ["world", *self.local.layout.axes, "tensor"]
        keys = sorted(self.bytes, key=lambda key: (order.index(key[0]), key[1]))
        return tuple(
            Sent(axis=key[0], collective=key[1], calls=self.calls[key], bytes=self.bytes[key])
            for key in keys
        )

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(self.bytes.values())

    def use(self, weight: Weight) -> None:
        """A weight comes together where it is multiplied."""
        if self.local.zero == 3:
            self._share(weight)
        self.gather(weight.over, weight.held * self.local.compute)

    def settle(self, weight: Weight) -> None:
        """Its gradient is scattered."""
        self.scatter(weight.over, weight.held * self.local.parameter)
        if self.local.zero >= 2:
            self._reduce(weight)

    def once(self, weight: Weight) -> None:
        """What ZeRO's stages 1 and 2 do once a step."""
        if self.local.zero in (1, 2):
            self._share(weight)
        if self.local.zero == 1:
            self._reduce(weight)

    def _share(self, weight: Weight) -> None:
        for over, piece in self.local.shares(weight):
            self.gather(over, piece * self.local.compute)

    def _reduce(self, weight: Weight) -> None:
        for over, piece in self.local.shares(weight):
            self.scatter(over, piece * self.local.parameter)


def block(local: Local) -> Traffic:
    """A micro-batch's way through a block and back."""
    found, forward, parts = Traffic(local), Traffic(local), Block(local=local)
    (hidden,) = local.mode.outer.hidden or (None,)
    norm, statistics = local.over(hidden), 2 * local.rows(local.mode.outer)
    for _ in range(2):
        forward.gather(norm, statistics * local.parameter)
        found.all_reduce(norm, statistics, local.parameter)
    for linear in (*parts.attention, *parts.mlp):
        _forward(forward, linear)
        _backward(found, linear)
    found.add(forward, 2 if local.settings.model.checkpoint else 1)
    return found


def _forward(traffic: Traffic, linear: Linear) -> None:
    c = traffic.local.compute
    traffic.gather(linear.over_x, linear.x * c)
    traffic.use(linear.weight)
    traffic.scatter(linear.over_y, linear.y * c)


def _backward(traffic: Traffic, linear: Linear) -> None:
    c = traffic.local.compute
    traffic.gather(linear.over_y, linear.y * c)
    traffic.scatter(linear.over_x, linear.x * c)
    if not traffic.local.settings.keep_gathers:
        traffic.use(linear.weight)
        traffic.gather(linear.over_x, linear.x * c)
    traffic.settle(linear.weight)


def embeddings(local: Local) -> Traffic:
    """A micro-batch's lookup and its gradient."""
    found, ends, lookup = Traffic(local), Ends(local=local), local.mode.lookup
    over, x = local.over(lookup.scatter_y), local.x * local.compute
    found.use(ends.table)
    found.scatter(over, x)
    found.gather(over, x)
    found.settle(ends.table)
    if lookup.swap and local.over(lookup.swap[0]).size > 1:
        found.send("tensor", "swap", 2 * x, calls=2)
    return found


def loss(local: Local) -> Traffic:
    """A micro-batch's last norm, head and loss."""
    found, ends, c = Traffic(local), Ends(local=local), local.compute
    (hidden,) = local.mode.outer.hidden or (None,)
    statistics = 2 * local.rows(local.mode.outer)
    found.gather(local.over(hidden), statistics * local.parameter)
    found.all_reduce(local.over(hidden), statistics, local.parameter)
    head, rows = ends.head, local.rows(local.mode.outer)
    chunks = -(-rows // min(ends.chunk, rows))
    found.use(head.weight)
    found.gather(head.over_x, head.x * c, chunks)
    found.scatter(head.over_y, head.y * c, chunks)
    (vocabulary,) = local.mode.up.weight_out or (None,)
    merged = 2 * head.y // ends.table.outputs * max(FLOAT32, c)
    found.gather(local.over(vocabulary), merged, chunks)
    found.gather(head.over_y, head.y * c, chunks)
    found.scatter(head.over_x, head.x * c, chunks)
    found.settle(head.weight)
    return found


@dataclass(frozen=True)
class Steps:
    """All that ranks send in a step, one stage at a time."""

    local: Local

    @cached_property
    def _block(self) -> Traffic:
        return block(self.local)

    def of(self, course: Course) -> Traffic:
        """What a rank of a stage sends."""
        local, state, micro_batches = self.local, course.state, course.micro_batches
        found, x = Traffic(local), local.x * local.compute
        for chunk in course.chunks:
            found.add(self._block, micro_batches * chunk.layers)
            if chunk.first:
                found.add(embeddings(local), micro_batches)
            if chunk.last:
                found.add(loss(local), micro_batches)
            messages = micro_batches * ((not chunk.first) + (not chunk.last))
            if messages:
                found.send("pipeline", "send", messages * x, messages)
        for weight in state.weights:
            found.once(weight)
        for bucket in state.buckets:
            for axis in bucket.axes:
                found.all_reduce(local.over(axis), bucket.entries, local.parameter)
        if state.tied:
            found.send("pipeline", "swap", state.tied)
        world = local.layout.gpus
        found.all_reduce(Over(axis="world", size=world), 3 + 2 * world, FLOAT64)
        return found
