"""What one rank of a pipeline stage holds over a step: its state, and the course of its work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from engine.estimate.block import Block
from engine.estimate.ends import Ends
from engine.estimate.ledger import Effect, Kind, Ledger
from engine.estimate.local import Local
from engine.estimate.state import State
from engine.schedule import Action

IDS = 16
"""Bytes of a token's id and its target."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A virtual stage: some layers, the embeddings with the first and the head with the last."""

    local: Local
    layers: range

    @property
    def first(self) -> bool:
        return self.layers.start == 0

    @property
    def last(self) -> bool:
        return self.layers.stop == self.local.settings.model.n_layer

    @property
    def tied(self) -> bool:
        """Whether lookup and head share their table on this rank."""
        return self.first and self.last and self.local.settings.model.tie_embeddings

    @cached_property
    def forward(self) -> Effect:
        """A micro-batch's way through the chunk; x comes from and goes to the stages beside it."""
        ledger, block, checkpoint = Ledger(), Block(local=self.local), self.checkpoint
        ends = Ends(local=self.local)
        if self.first:
            ends.embed(ledger)
        else:
            ledger.hold(Kind.BUFFERS, block.x)
        for _ in self.layers:
            ledger.become(Kind.BUFFERS, Kind.ACTIVATIONS, block.x)
            block.forward(ledger, keep=not checkpoint)
        if self.last:
            ledger.become(Kind.BUFFERS, Kind.ACTIVATIONS, block.x)
            ends.loss(ledger)
        else:
            ledger.drop(Kind.BUFFERS, block.x)
        return ledger.effect

    @property
    def checkpoint(self) -> bool:
        return bool(self.local.settings.model.checkpoint)

    def backward(self, *, first: bool) -> Effect:
        """The way back; ``first``: no micro-batch has left gradients yet."""
        ledger, block, ends = Ledger(), Block(local=self.local), Ends(local=self.local)
        if self.last:
            ends.loss_backward(ledger, first=first, tied=self.tied)
        else:
            ledger.hold(Kind.BUFFERS, block.x)
        for _ in self.layers:
            if self.checkpoint:
                block.forward(ledger, keep=True)
                ledger.drop(Kind.BUFFERS, block.x)
            block.backward(ledger, first=first)
        if self.first:
            ends.embed_backward(ledger, first=first, tied=self.tied)
        else:
            ledger.drop(Kind.BUFFERS, block.x)
        return ledger.effect


def step(local: Local, state: State, chunks: Sequence[Chunk], actions: Sequence[Action]) -> Ledger:
    """A step of one rank, from its state on: a ledger that knows the fullest moment."""
    ledger = Ledger()
    for kind, size in state.between_steps.items():
        ledger.hold(kind, size)
    micro_batches = 1 + max(action.micro_batch for action in actions)
    ledger.hold(Kind.BUFFERS, micro_batches * local.tokens * IDS)
    if any(chunk.last for chunk in chunks):
        ledger.hold(Kind.BUFFERS, Ends(local=local).normed)
    forward = [chunk.forward for chunk in chunks]
    later = [chunk.backward(first=False) for chunk in chunks]
    fresh = [chunk.backward(first=True) for chunk in chunks]
    seen = set[int]()
    for action in actions:
        if action.kind == "forward":
            ledger.run(forward[action.chunk])
        elif action.kind in ("backward", "input"):
            ledger.run(later[action.chunk] if action.chunk in seen else fresh[action.chunk])
            if action.chunk not in seen:
                seen.add(action.chunk)
                ledger.hold(Kind.GRADIENTS, state.vectors[action.chunk])
    ledger.touch(Kind.BUFFERS, state.sums)
    return ledger
