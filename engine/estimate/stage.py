"""Simulation of a pipeline stage's allocations over a step, action by action.

The actions are those of engine/training/pipeline.py.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from engine.estimate.block import BlockMemory
from engine.estimate.embedding_head import INDEX, EmbeddingHeadMemory
from engine.estimate.ledger import Ledger, MemoryDelta, MemoryKind
from engine.estimate.linear import ForwardMode, reduce_at_step_end
from engine.estimate.local_shapes import LocalShapes
from engine.estimate.state import LocalState
from engine.pipeline.schedule import Action
from models.parallel.tuning import IN_FLIGHT

Message = tuple[str, int, int]
"""Payload, chunk and micro-batch."""


@dataclass(frozen=True, kw_only=True)
class ChunkMemory:
    """Allocations of a virtual stage.

    A received x or dy and a sent dx count as buffers. A sent x counts as an activation, since it is
    saved for the backward pass.
    """

    shapes: LocalShapes
    layers: int
    """Number of blocks."""
    first: bool
    """It has the embeddings."""
    last: bool
    """It has the head."""
    defers_weight_gradients: bool
    """The schedule defers the gradients of weights."""

    @property
    def tied(self) -> bool:
        """True if lookup and head share their table on this rank."""
        return self.first and self.last and self.shapes.settings.model.tie_embeddings

    @cached_property
    def forward(self) -> MemoryDelta:
        """Memory change of the forward pass of a micro-batch."""
        ledger, block, ends = (
            Ledger(),
            BlockMemory(shapes=self.shapes),
            EmbeddingHeadMemory(shapes=self.shapes),
        )
        run = {False: ForwardMode.ALL, True: ForwardMode.NOTHING, "selective": ForwardMode.MATMULS}
        layer = Ledger()
        layer.recategorise(MemoryKind.BUFFERS, MemoryKind.ACTIVATIONS, block.x)
        block.forward(layer, run[self._checkpoint])
        if self.first:
            ends.embed(ledger)
        for _ in range(self.layers):
            ledger.apply(layer.delta)
        ledger.recategorise(MemoryKind.BUFFERS, MemoryKind.ACTIVATIONS, block.x)
        if self.last:
            ends.loss(ledger)
        return ledger.delta

    @cached_property
    def first_backward(self) -> MemoryDelta:
        """Memory change of the first micro-batch's backward pass, which allocates gradients."""
        return self._backward(first=True)

    @cached_property
    def backward(self) -> MemoryDelta:
        """Memory change of the backward pass of any later micro-batch."""
        return self._backward(first=False)

    @cached_property
    def first_weights(self) -> MemoryDelta:
        """Memory change of the first micro-batch's deferred weight gradients."""
        return self._weights(first=True)

    @cached_property
    def weights(self) -> MemoryDelta:
        """Memory change of the deferred weight gradients of any later micro-batch."""
        return self._weights(first=False)

    def _backward(self, *, first: bool) -> MemoryDelta:
        ledger, block, ends = (
            Ledger(),
            BlockMemory(shapes=self.shapes),
            EmbeddingHeadMemory(shapes=self.shapes),
        )
        borrowed = not self.last and not (
            self.defers_weight_gradients and block.keeps_dy(block.mlp[1])
        )
        layer = Ledger()
        if self._checkpoint:
            selective = self._checkpoint == "selective"
            block.forward(
                layer, ForwardMode.RECOMPUTE_FROM_MATMULS if selective else ForwardMode.RECOMPUTE
            )
        block.backward(layer, first=first, later=self.defers_weight_gradients)
        if self.last:
            ends.loss_backward(ledger, first=first, tied=self.tied)
        for number in range(self.layers):
            ledger.apply(layer.delta)
            if number == 0 and borrowed:
                ledger.allocate(MemoryKind.BUFFERS, block.x)  # the received dy was never freed
        if self.first:
            ends.embed_backward(ledger, first=first, tied=self.tied)
        ledger.free(MemoryKind.ACTIVATIONS, 0 if self.last else block.x)
        ledger.free(MemoryKind.BUFFERS, block.x if borrowed else 0)
        return ledger.delta

    def _weights(self, *, first: bool) -> MemoryDelta:
        ledger, block = Ledger(), BlockMemory(shapes=self.shapes)
        saved = made = 0
        for _ in range(self.layers):
            more, made = block.weights(ledger, made, first=first)
            saved += more
        ledger.free(MemoryKind.ACTIVATIONS, saved)
        ledger.free(MemoryKind.BUFFERS, made)
        return ledger.delta

    @property
    def _checkpoint(self) -> bool | str:
        return self.shapes.settings.model.checkpoint


@dataclass
class RankSimulation:
    """Simulates a step of one rank, starting with its state, in a ledger that records the peak.

    ``receive`` and ``run`` are called in the order of the schedule, ``finish`` at the end.
    """

    shapes: LocalShapes
    state: LocalState
    chunks: Sequence[ChunkMemory]
    micro_batches: int
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        for kind, size in self.state.between_steps.items():
            self.ledger.allocate(kind, size)
        self.ledger.allocate(MemoryKind.PARAMETERS, self.state.kept_weights)
        self.ledger.allocate(
            MemoryKind.BUFFERS, 2 * INDEX * self.micro_batches * self.shapes.tokens
        )
        self._x = self.shapes.x * self.shapes.compute
        self._seen = set[tuple[bool, int]]()
        self._sends = deque[Message]()
        self._freed_with = Counter[Message]()

    def receive(self) -> None:
        """Allocate the buffer of a received message."""
        self.ledger.allocate(MemoryKind.BUFFERS, self._x)

    def run(self, action: Action) -> None:
        """Run an action, and send its result."""
        chunk, forward = self.chunks[action.chunk], ("forward", action.chunk, action.micro_batch)
        if action.kind == "forward":
            self.ledger.apply(chunk.forward)
            if not chunk.last:
                self._send(forward)
        elif action.kind == "backward_weight":
            first = self._first(action)
            self.ledger.apply(chunk.first_weights if first else chunk.weights)
        else:
            first = self._first(action)
            self.ledger.apply(chunk.first_backward if first else chunk.backward)
            if first:
                self.ledger.allocate(MemoryKind.GRADIENTS, self.state.vectors[action.chunk])
            if forward in self._sends:  # its message has the last reference
                self.ledger.allocate(MemoryKind.BUFFERS, self._x)
                self._freed_with[forward] = self._x
            if not chunk.first:
                backward = ("backward_input", action.chunk, action.micro_batch)
                self._freed_with[backward] = self._x
                self._send(backward)

    def finish(self) -> None:
        """Complete all sends and reduce the gradients; the optimizer updates in place."""
        ledger = self.ledger
        ledger.free(MemoryKind.BUFFERS, self._freed_with.total())
        if self.shapes.zero == 1:
            for weight in self.state.weights:
                reduce_at_step_end(ledger, self.shapes, weight)
        ledger.transient(MemoryKind.BUFFERS, self.state.sums)
        ledger.transient(MemoryKind.BUFFERS, self.state.tied)
        if self.shapes.settings.log.statistics:  # a copy of the weights, for the update
            ledger.transient(MemoryKind.BUFFERS, self.state.between_steps[MemoryKind.PARAMETERS])

    def _send(self, message: Message) -> None:
        """Queue a send; the payload is freed once IN_FLIGHT newer sends are queued."""
        self._sends.append(message)
        if len(self._sends) > IN_FLIGHT:
            self.ledger.free(MemoryKind.BUFFERS, self._freed_with.pop(self._sends.popleft(), 0))

    def _first(self, action: Action) -> bool:
        """Return whether ``action`` is the first of its kind in its chunk."""
        work = (action.kind == "backward_weight", action.chunk)
        first = work not in self._seen
        self._seen.add(work)
        return first
