"""A pipeline stage over a step: what its work allocates, action by action.

The work is that of engine/training/pipeline.py.
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
from engine.pipeline_schedule import Action
from models.parallel.tuning import IN_FLIGHT

Message = tuple[str, int, int]
"""What it carries, of which chunk and micro-batch."""


@dataclass(frozen=True, kw_only=True)
class ChunkMemory:
    """A virtual stage: so many layers, the embeddings with the ``first`` and the head with the
    ``last``. Backward passes are ``split`` where the schedule puts off their weights' part.

    Of the messages, x and dy have arrived among the buffers; the x that is sent stays among the
    activations for the backward pass, the dx that is sent among the buffers.
    """

    shapes: LocalShapes
    layers: int
    first: bool
    last: bool
    split: bool

    @property
    def tied(self) -> bool:
        """Whether lookup and head share their table on this rank."""
        return self.first and self.last and self.shapes.settings.model.tie_embeddings

    @cached_property
    def forward(self) -> MemoryDelta:
        """A micro-batch's way through the chunk."""
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
        """The way back of the first micro-batch, which finds no gradients."""
        return self._backward(first=True)

    @cached_property
    def backward(self) -> MemoryDelta:
        """That of another one."""
        return self._backward(first=False)

    @cached_property
    def first_weights(self) -> MemoryDelta:
        """The gradients of weights that were put off, where there are none yet."""
        return self._weights(first=True)

    @cached_property
    def weights(self) -> MemoryDelta:
        """The same, added to those of another micro-batch."""
        return self._weights(first=False)

    def _backward(self, *, first: bool) -> MemoryDelta:
        ledger, block, ends = (
            Ledger(),
            BlockMemory(shapes=self.shapes),
            EmbeddingHeadMemory(shapes=self.shapes),
        )
        borrowed = not self.last and not (self.split and block.keeps_dy(block.mlp[1]))
        layer = Ledger()
        if self._checkpoint:
            selective = self._checkpoint == "selective"
            block.forward(
                layer, ForwardMode.RECOMPUTE_FROM_MATMULS if selective else ForwardMode.RECOMPUTE
            )
        block.backward(layer, first=first, later=self.split)
        if self.last:
            ends.loss_backward(ledger, first=first, tied=self.tied)
        for number in range(self.layers):
            ledger.apply(layer.delta)
            if number == 0 and borrowed:
                ledger.allocate(MemoryKind.BUFFERS, block.x)  # the dy that came was never freed
        if self.first:
            ends.embed_backward(ledger, first=first, tied=self.tied)
        ledger.free(MemoryKind.ACTIVATIONS, 0 if self.last else block.x)
        ledger.free(MemoryKind.BUFFERS, block.x if borrowed else 0)
        return ledger.delta

    def _weights(self, *, first: bool) -> MemoryDelta:
        ledger, block = Ledger(), BlockMemory(shapes=self.shapes)
        kept = made = 0
        for _ in range(self.layers):
            more, made = block.weights(ledger, made, first=first)
            kept += more
        ledger.free(MemoryKind.ACTIVATIONS, kept)
        ledger.free(MemoryKind.BUFFERS, made)
        return ledger.delta

    @property
    def _checkpoint(self) -> bool | str:
        return self.shapes.settings.model.checkpoint


@dataclass
class RankSimulation:
    """A step of one rank, from its state on: a ledger that comes to know the fullest moment.

    ``receive`` and ``apply`` are called in the order of the schedule, ``reduce_at_step_end`` at
    the end.
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
        """Room for a message."""
        self.ledger.allocate(MemoryKind.BUFFERS, self._x)

    def run(self, action: Action) -> None:
        """An action, and the message that it sends."""
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
            if forward in self._sends:  # its message was the last to hold it
                self.ledger.allocate(MemoryKind.BUFFERS, self._x)
                self._freed_with[forward] = self._x
            if not chunk.first:
                backward = ("backward_input", action.chunk, action.micro_batch)
                self._freed_with[backward] = self._x
                self._send(backward)

    def finish(self) -> None:
        """All sends have arrived; gradients are summed; the optimizer runs in place."""
        ledger = self.ledger
        ledger.free(MemoryKind.BUFFERS, self._freed_with.total())
        if self.shapes.zero == 1:
            for weight in self.state.weights:
                reduce_at_step_end(ledger, self.shapes, weight)
        ledger.transient(MemoryKind.BUFFERS, self.state.sums)
        ledger.transient(MemoryKind.BUFFERS, self.state.tied)

    def _send(self, message: Message) -> None:
        """What it carries is held until so many others are under way."""
        self._sends.append(message)
        if len(self._sends) > IN_FLIGHT:
            self.ledger.free(MemoryKind.BUFFERS, self._freed_with.pop(self._sends.popleft(), 0))

    def _first(self, action: Action) -> bool:
        """Whether a chunk does its first work of that kind."""
        work = (action.kind == "backward_weight", action.chunk)
        first = work not in self._seen
        self._seen.add(work)
        return first
