"""Communication volume of a rank per step, by axis and collective, as counted by
models/parallel/collectives.py.

Each of n ranks sends n - 1 times its shard in an all-gather, as much in a reduce-scatter, and 2 (n
- 1) / n of the buffer in an all-reduce (Patarasu & Yuan 2009, section 2). Thus data parallelism
sends 2 (n - 1) / n of the gradients, ZeRO stages 1 and 2 as much, and stage 3 another (n - 1) / n
(Rajbhandari et al. 2020, section 7), or two more with activation checkpointing, since a recomputed
layer gathers its weight once more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from engine.estimate.attention import GroupAttentionMemory
from engine.estimate.block import BlockMemory
from engine.estimate.embedding_head import EmbeddingHeadMemory
from engine.estimate.local_shapes import CollectiveAxis, LocalLinear, LocalShapes, LocalWeight
from engine.estimate.result import CommVolume
from engine.estimate.stage import RankSimulation
from engine.step_message import message_entries
from models.parallel.tuning import SMALL_BYTES

FLOAT32, FLOAT64 = 4, 8


@dataclass
class PredictedTraffic:
    """Predicts the volume that a rank sends."""

    shapes: LocalShapes
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, other: PredictedTraffic, times: int = 1) -> None:
        """Add the traffic of ``other``, ``times`` times."""
        for mine, theirs in ((self.calls, other.calls), (self.bytes, other.bytes)):
            for key, number in theirs.items():
                mine[key] += times * number

    def send(self, axis: str, collective: str, size: int, calls: int = 1) -> None:
        """Add ``calls`` calls of a collective, which send ``size`` bytes in total."""
        self.calls[axis, collective] += calls
        self.bytes[axis, collective] += size

    def gather(self, axis: CollectiveAxis, size: int, calls: int = 1) -> None:
        """Add an all-gather of shards of ``size`` bytes."""
        if axis.size > 1:
            self.send(axis.axis, "all_gather", (axis.size - 1) * size, calls)

    def scatter(self, axis: CollectiveAxis, size: int, calls: int = 1) -> None:
        """Add a reduce-scatter into shards of ``size`` bytes."""
        if axis.size > 1:
            self.send(axis.axis, "reduce_scatter", (axis.size - 1) * size, calls)

    def all_reduce(self, axis: CollectiveAxis, entries: int, entry: int) -> None:
        """Add an all-reduce of ``entries`` entries of ``entry`` bytes. Over gloo's pairs, a small
        buffer is all-gathered whole instead."""
        if axis.size > 1:
            size = entries * entry
            small = self.shapes.uses_gloo_pairs and (size <= SMALL_BYTES or entries < axis.size)
            all_ranks = size if small else 2 * size
            sent = (axis.size - 1) * all_ranks // (1 if small else axis.size)
            self.send(axis.axis, "all_reduce", sent)

    def volumes(self) -> tuple[CommVolume, ...]:
        """Return the volumes by axis, slowest first, then by collective."""
        order = ["world", *self.shapes.layout.axes, "tensor"]
        keys = sorted(self.bytes, key=lambda key: (order.index(key[0]), key[1]))
        return tuple(
            CommVolume(axis=key[0], collective=key[1], calls=self.calls[key], bytes=self.bytes[key])
            for key in keys
        )

    @property
    def total(self) -> int:
        """Bytes of all collectives."""
        return sum(self.bytes.values())

    def gather_weight(self, weight: LocalWeight) -> None:
        """Add the gathers of a weight for a matmul."""
        if self.shapes.zero == 3:
            self._share(weight)
        self.gather(weight.axis, weight.held_entries * self.shapes.compute)

    def reduce_gradient(self, weight: LocalWeight) -> None:
        """Add the reduce-scatters of a weight's gradient after backward."""
        self.scatter(weight.axis, weight.held_entries * self.shapes.parameter)
        if self.shapes.zero >= 2:
            self._reduce(weight)

    def once_per_step(self, weight: LocalWeight) -> None:
        """Add the collectives of ZeRO stages 1 and 2, which run once per step."""
        if self.shapes.zero in (1, 2):
            self._share(weight)
        if self.shapes.zero == 1:
            self._reduce(weight)

    def _share(self, weight: LocalWeight) -> None:
        for axis, piece in self.shapes.shares(weight):
            self.gather(axis, piece * self.shapes.compute)

    def _reduce(self, weight: LocalWeight) -> None:
        for axis, piece in self.shapes.shares(weight):
            self.scatter(axis, piece * self.shapes.parameter)


def block_traffic(shapes: LocalShapes) -> PredictedTraffic:
    """Predict the traffic of one micro-batch in a block, forward and backward."""
    traffic, forward, parts = (
        PredictedTraffic(shapes),
        PredictedTraffic(shapes),
        BlockMemory(shapes=shapes),
    )
    (hidden,) = shapes.mode.outer.hidden or (None,)
    norm, statistics = shapes.collective_axis(hidden), 2 * shapes.rows(shapes.mode.outer)
    for _ in range(2):
        forward.gather(norm, statistics * shapes.parameter)
        traffic.all_reduce(norm, statistics, shapes.parameter)
    for linear in (*parts.attention, *parts.mlp):
        _forward(forward, linear)
        _backward(traffic, linear)
    if parts.group:
        _exchange_keys(traffic, forward)
    traffic.add(forward, 2 if shapes.settings.model.checkpoint else 1)
    return traffic


def _exchange_keys(traffic: PredictedTraffic, forward: PredictedTraffic) -> None:
    """Add the traffic of the shard that sends the most bytes in attention: keys and values, and the
    gradients that it returns for received keys and values."""
    shapes, model = traffic.shapes, traffic.shapes.settings.model
    shards = [
        GroupAttentionMemory(shapes=shapes, member=member) for member in range(shapes.order.group)
    ]
    passes = 1 + bool(model.checkpoint) + (not shards[0].keeps_keys)
    most = max(shards, key=lambda shard: passes * sum(shard.sent) + sum(shard.received))
    directions = [(forward, most.sent), (traffic, most.received)]
    directions += [] if most.keeps_keys else [(traffic, most.sent)]
    for part, sizes in directions:
        for size in filter(None, sizes):
            part.send("tensor", "all_to_all", size)


def _forward(traffic: PredictedTraffic, linear: LocalLinear) -> None:
    c = traffic.shapes.compute
    traffic.gather(linear.axis_x, linear.x * c)
    traffic.gather_weight(linear.weight)
    traffic.scatter(linear.axis_y, linear.y * c)


def _backward(traffic: PredictedTraffic, linear: LocalLinear) -> None:
    c = traffic.shapes.compute
    traffic.gather(linear.axis_y, linear.y * c)
    traffic.scatter(linear.axis_x, linear.x * c)
    if not traffic.shapes.settings.keep_gathers:
        traffic.gather_weight(linear.weight)
        traffic.gather(linear.axis_x, linear.x * c)
    traffic.reduce_gradient(linear.weight)


def embedding_traffic(shapes: LocalShapes) -> PredictedTraffic:
    """Predict the traffic of one micro-batch's embedding lookup, forward and backward."""
    traffic, ends, lookup = (
        PredictedTraffic(shapes),
        EmbeddingHeadMemory(shapes=shapes),
        shapes.mode.lookup,
    )
    over, x = shapes.collective_axis(lookup.scatter_y), shapes.x * shapes.compute
    traffic.gather_weight(ends.table)
    traffic.scatter(over, x)
    traffic.gather(over, x)
    traffic.reduce_gradient(ends.table)
    if lookup.swap and shapes.collective_axis(lookup.swap[0]).size > 1:
        traffic.send("tensor", "swap", 2 * x, calls=2)
    return traffic


def loss_traffic(shapes: LocalShapes) -> PredictedTraffic:
    """Predict the traffic of one micro-batch's last norm, head and loss."""
    traffic, ends, c = PredictedTraffic(shapes), EmbeddingHeadMemory(shapes=shapes), shapes.compute
    (hidden,) = shapes.mode.outer.hidden or (None,)
    statistics = 2 * shapes.rows(shapes.mode.outer)
    traffic.gather(shapes.collective_axis(hidden), statistics * shapes.parameter)
    traffic.all_reduce(shapes.collective_axis(hidden), statistics, shapes.parameter)
    head, rows = ends.head, shapes.rows(shapes.mode.outer)
    chunks = -(-rows // min(ends.chunk, rows))
    traffic.gather_weight(head.weight)
    traffic.gather(head.axis_x, head.x * c, chunks)
    traffic.scatter(head.axis_y, head.y * c, chunks)
    (vocabulary,) = shapes.mode.up.weight_out or (None,)
    merged = 2 * head.y // ends.table.outputs * max(FLOAT32, c)
    traffic.gather(shapes.collective_axis(vocabulary), merged, chunks)
    traffic.gather(head.axis_y, head.y * c, chunks)
    traffic.scatter(head.axis_x, head.x * c, chunks)
    traffic.reduce_gradient(head.weight)
    return traffic


def step_traffic(simulation: RankSimulation, per_block: PredictedTraffic) -> PredictedTraffic:
    """Predict the traffic of a rank of a stage in one step. ``per_block``: of ``block_traffic``."""
    shapes, state, micro_batches = simulation.shapes, simulation.state, simulation.micro_batches
    traffic, x = PredictedTraffic(shapes), shapes.x * shapes.compute
    for chunk in simulation.chunks:
        traffic.add(per_block, micro_batches * chunk.layers)
        if chunk.first:
            traffic.add(embedding_traffic(shapes), micro_batches)
        if chunk.last:
            traffic.add(loss_traffic(shapes), micro_batches)
        messages = micro_batches * ((not chunk.first) + (not chunk.last))
        if messages:
            traffic.send("pipeline", "send", messages * x, messages)
    for weight in state.weights:
        traffic.once_per_step(weight)
    for bucket in state.buckets:
        for axis in bucket.axes:
            traffic.all_reduce(shapes.collective_axis(axis), bucket.entries, shapes.parameter)
    if state.tied:
        traffic.send("pipeline", "swap", state.tied)
    world = shapes.layout.gpus
    traffic.all_reduce(CollectiveAxis(axis="world", size=world), message_entries(world), FLOAT64)
    return traffic
