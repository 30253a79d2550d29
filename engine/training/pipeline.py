"""Runs the micro-batches of a step through this rank's stages, in the order of a schedule."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from engine.data.batches.loader import Batch
from engine.pipeline.p2p import P2POp, insert_p2p
from engine.pipeline.schedule import Action, PipelineShape, actions
from engine.training.gradients import GradientReducer
from models.chunks import ModelChunks
from models.gpt import GPT
from models.parallel.collectives import Axis, Handle
from models.parallel.context import DeferredGradients
from models.parallel.tuning import IN_FLIGHT

Measure = Callable[[GPT, Tensor, Tensor], Tensor]
"""A function that the last stage applies to a micro-batch: model, x [T_local, C_local], targets
[samples, seq_len] -> numbers, which are summed over micro-batches and ranks."""


Observe = Callable[[GPT, Tensor], AbstractContextManager[object]]
"""Takes a chunk and the targets of a micro-batch, and returns a context for the forward pass."""


def unobserved(chunk: GPT, targets: Tensor) -> AbstractContextManager[object]:
    """Return the context of a forward pass that nothing observes."""
    return nullcontext()


class WorkKey(NamedTuple):
    """A micro-batch in one of this rank's chunks."""

    chunk: int
    micro_batch: int


class MessageKey(NamedTuple):
    """A message between stages: an activation ("forward") or its gradient ("backward_input")."""

    payload: str
    chunk: int
    micro_batch: int


class SavedForward(NamedTuple):
    """Input and output of a chunk's forward pass, kept for the backward pass."""

    x: Tensor | None
    """Input, a leaf of autograd, whose gradient is sent to the previous stage; None in the first
    stage."""
    y: Tensor
    """Output, or the loss in the last stage."""


class Receiving(NamedTuple):
    """A message that this rank has started to receive into ``tensor``."""

    tensor: Tensor
    handle: Handle


def scaled_loss(scale: float) -> Measure:
    """Return a measure: this rank's share of the summed cross-entropy, multiplied by ``scale``."""
    return lambda model, x, targets: model.loss(x, targets, scale)


class Pipeline:
    """Runs ``schedule`` over the ranks of ``axis``; a pipeline of one rank sends no messages.

    Activations are sent in shards [T_local, C_local]: each rank exchanges messages with the rank
    that has the same tensor coordinates in the previous or the next stage.
    """

    def __init__(self, model: ModelChunks, axis: Axis, schedule: str) -> None:
        self.model, self.axis, self.schedule = model, axis, schedule
        self.plan = cache(self._plan)

    def train(
        self,
        batches: Sequence[Batch],
        seeds: Sequence[int],
        scale: float,
        reducer: GradientReducer,
        observe: Observe = unobserved,
    ) -> Tensor:
        """Accumulate the gradients of all ``batches`` and return this rank's share of the scaled
        loss, float64.

        seeds: of the dropout masks, one per micro-batch.
        reducer: starts the all-reduce of gradients as soon as they are complete.
        observe: opens the context of each forward pass.
        """
        run = _PipelineRun(self, batches, seeds, scaled_loss(scale), reducer, observe=observe)
        return run.run(self.plan(len(batches), True))

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch], measure: Measure, total: Tensor) -> Tensor:
        """Run all ``batches`` without gradients, add this rank's share of ``measure`` to ``total``
        (float64), and return ``total``."""
        run = _PipelineRun(self, batches, [0] * len(batches), measure, None, total)
        return run.run(self.plan(len(batches), False))

    def _plan(self, micro_batches: int, backward: bool) -> list[Action | P2POp]:
        """Return this rank's actions in a step, with its sends and receives in between."""
        chunks = len(self.model.chunks)
        shape = PipelineShape(ranks=self.axis.size, micro_batches=micro_batches, chunks=chunks)
        if backward:
            orders = [actions(self.schedule, shape, rank) for rank in range(shape.ranks)]
        else:
            orders = [
                [
                    Action(kind="forward", micro_batch=n, chunk=chunk)
                    for n in range(micro_batches)
                    for chunk in range(chunks)
                ]
            ] * shape.ranks
        return insert_p2p(orders, shape)[self.axis.index]


class _PipelineRun:
    """One run through a plan of actions and messages, with the tensors that live between the
    actions."""

    def __init__(
        self,
        pipeline: Pipeline,
        batches: Sequence[Batch],
        seeds: Sequence[int],
        measure: Measure,
        reducer: GradientReducer | None,
        total: Tensor | None = None,
        observe: Observe = unobserved,
    ) -> None:
        """Prepare a run. ``reducer``: None for a run without a backward pass."""
        self.model, self.axis = pipeline.model, pipeline.axis
        self.batches, self.seeds, self.reducer = batches, seeds, reducer
        self.measure, self.observe = measure, observe
        zero = torch.zeros((), dtype=torch.float64, device=self.model.parallel.device)
        self.total = zero if total is None else total
        self.saved: dict[WorkKey, SavedForward] = {}
        self.deferred: dict[WorkKey, DeferredGradients] = {}
        self.receiving: dict[MessageKey, Receiving] = {}
        self.outgoing: dict[MessageKey, Tensor] = {}
        self.sends: deque[Handle] = deque()

    def run(self, plan: list[Action | P2POp]) -> Tensor:
        """Execute ``plan`` and return the sum of the measure over the micro-batches, float64."""
        for item in plan:
            if isinstance(item, P2POp):
                self._send_or_receive(item)
            else:
                self._execute(item)
        while self.sends:
            self.sends.popleft().wait()
        return self.total

    def _execute(self, action: Action) -> None:
        match action.kind:
            case "forward":
                self.forward(action)
            case "backward":
                self.backward(action)
            case "backward_input":
                self.backward_input(action)
            case "backward_weight":
                self.backward_weight(action)

    def forward(self, action: Action) -> None:
        """Run the forward pass of the action's micro-batch in its chunk."""
        chunk, key = self.model[action.chunk], WorkKey(action.chunk, action.micro_batch)
        ids, targets = self.batches[action.micro_batch]
        seed = self.seeds[action.micro_batch]
        x = None
        if chunk.first:
            y = chunk.embed(ids, seed)
        else:
            x = self._received(MessageKey("forward", *key))
            y = x.requires_grad_(self.reducer is not None)
        with self.observe(chunk, targets):
            y = chunk(y, ids.shape[1], seed)
            if chunk.last:
                y = self.measure(chunk, y, targets)
        if chunk.last:
            self.total += y.detach()
        else:
            self.outgoing[MessageKey("forward", *key)] = y.detach()
        if self.reducer is not None:
            self.saved[key] = SavedForward(x, y)

    def backward(self, action: Action) -> None:
        """Compute the gradients of the input and the parameters of the action's chunk."""
        chunk, key = self.model[action.chunk], WorkKey(action.chunk, action.micro_batch)
        x, y = self.saved.pop(key)
        dy = None if chunk.last else self._received(MessageKey("backward_input", *key))
        with self._final_backward(action):
            torch.autograd.backward(y, dy)
        if x is not None:
            assert x.grad is not None
            self.outgoing[MessageKey("backward_input", *key)] = x.grad

    def backward_input(self, action: Action) -> None:
        """Compute the gradient of the chunk's input; defer the gradients of the chunk's weights."""
        with self.model.parallel.deferred.collect() as gradients:
            self.backward(action)
        self.deferred[WorkKey(action.chunk, action.micro_batch)] = gradients

    @torch.no_grad()
    def backward_weight(self, action: Action) -> None:
        """Compute the weight gradients that ``backward_input`` deferred."""
        assert self.reducer is not None
        with self._final_backward(action):
            for weight, compute in self.deferred.pop(WorkKey(action.chunk, action.micro_batch)):
                gradient = compute()
                if gradient is not None:
                    self.reducer.add(weight, gradient)

    def _final_backward(self, action: Action) -> AbstractContextManager[None]:
        """Return ``final_backward()`` of the reducer if this is the last micro-batch, else a
        context without effect."""
        assert self.reducer is not None
        last = action.micro_batch == len(self.batches) - 1
        return self.reducer.final_backward() if last else nullcontext()

    def _send_or_receive(self, message: P2POp) -> None:
        """Start to send or to receive ``message``. At most IN_FLIGHT sends are in progress at a
        time."""
        key = MessageKey(message.payload, message.chunk, message.micro_batch)
        if message.direction == "send":
            self.sends.append(self.axis.start_send(self.outgoing.pop(key), message.peer))
            if len(self.sends) > IN_FLIGHT:
                self.sends.popleft().wait()
        else:
            tensor = self._empty_activation(self.model[message.chunk], message.micro_batch)
            self.receiving[key] = Receiving(tensor, self.axis.start_receive(tensor, message.peer))

    def _received(self, key: MessageKey) -> Tensor:
        """Wait until the message ``key`` is received, and return its tensor."""
        tensor, handle = self.receiving.pop(key)
        handle.wait()
        return tensor

    def _empty_activation(self, chunk: GPT, micro_batch: int) -> Tensor:
        """Allocate memory for the chunk's input x of a micro-batch, in the mode's outer
        sharding."""
        parallel, outer = chunk.parallel, chunk.parallel.mode.outer
        samples, length = self.batches[micro_batch][0].shape
        order = parallel.row_order(samples * length, length)
        rows = order.rows // parallel.num_shards(outer.tokens)
        hidden = chunk.config.n_embd // parallel.num_shards(outer.hidden)
        return torch.empty(rows, hidden, dtype=parallel.compute, device=parallel.device)
