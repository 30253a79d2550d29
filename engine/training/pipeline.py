"""Runs the micro-batches of a step through this rank's stages, in the order of a schedule."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from engine.pipeline_schedule import Action, P2POp, PipelineShape, actions, insert_p2p
from engine.training.gradients import GradientReducer
from models.chunks import ModelChunks
from models.gpt import GPT
from models.parallel.collectives import Axis, Finish
from models.parallel.context import DeferredGradients
from models.parallel.tuning import IN_FLIGHT

Batch = tuple[Tensor, Tensor]
"""ids and targets, int64 [samples, seq_len]; targets of -100 do not count."""

MessageKey = tuple[str, int, int]
"""What is sent ("forward": activations, "backward_input": their gradient), chunk, micro-batch."""


Measure = Callable[[GPT, Tensor, Tensor], Tensor]
"""What the last stage makes of a micro-batch, of its x [T_local, C_local] and targets [samples,
seq_len]: numbers that are added up over micro-batches and ranks."""


def scaled_loss(scale: float) -> Measure:
    """This rank's share of the summed cross-entropy, times ``scale``."""
    return lambda model, x, targets: model.loss(x, targets, scale)


class Pipeline:
    """``schedule`` over the ranks of ``axis``; one rank is a pipeline too, without messages.

    Activations [T_local, C_local] travel as they are cut: each rank talks to the one with its own
    tensor coordinates in the stage before or after.
    """

    def __init__(self, model: ModelChunks, axis: Axis, schedule: str) -> None:
        self.model, self.axis, self.schedule = model, axis, schedule
        self.plan = cache(self._plan)

    def train(
        self, batches: Sequence[Batch], seeds: Sequence[int], scale: float, reducer: GradientReducer
    ) -> Tensor:
        """Gradients of all ``batches``, added up; this rank's share of the scaled loss, float64.

        ``seeds`` key the dropout masks, one a micro-batch; ``reducer`` is told which gradients are
        complete, so that their sum over ranks starts at once.
        """
        one = _PipelineRun(self, batches, seeds, scaled_loss(scale), reducer)
        return one.run(self.plan(len(batches), True))

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch], measure: Measure, total: Tensor) -> Tensor:
        """``total``, in float64, with this rank's share of what is measured added, without
        gradients."""
        one = _PipelineRun(self, batches, [0] * len(batches), measure, None, total)
        return one.run(self.plan(len(batches), False))

    def _plan(self, micro_batches: int, backward: bool) -> list[Action | P2POp]:
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
    """One run through a plan: what is held between its actions."""

    def __init__(
        self,
        pipeline: Pipeline,
        batches: Sequence[Batch],
        seeds: Sequence[int],
        measure: Measure,
        reducer: GradientReducer | None,
        total: Tensor | None = None,
    ) -> None:
        self.model, self.axis = pipeline.model, pipeline.axis
        self.batches, self.seeds, self.reducer = batches, seeds, reducer
        self.measure = measure
        zero = torch.zeros((), dtype=torch.float64, device=self.model.parallel.device)
        self.total = zero if total is None else total
        self.saved: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = {}
        self.weights: dict[tuple[int, int], DeferredGradients] = {}
        self.receiving: dict[MessageKey, tuple[Tensor, Finish]] = {}
        self.outgoing: dict[MessageKey, Tensor] = {}
        self.sends: deque[tuple[Tensor, Finish]] = deque()

    def run(self, plan: list[Action | P2POp]) -> Tensor:
        for item in plan:
            if isinstance(item, P2POp):
                self._send_or_receive(item)
            else:
                getattr(self, item.kind)(item)
        while self.sends:
            self.sends.popleft()[1]()
        return self.total

    def forward(self, action: Action) -> None:
        chunk, where = self.model[action.chunk], (action.chunk, action.micro_batch)
        ids, targets = self.batches[action.micro_batch]
        seed = self.seeds[action.micro_batch]
        x = None
        if chunk.first:
            y = chunk.embed(ids, seed)
        else:
            x = self._received(("forward", *where)).requires_grad_(self.reducer is not None)
            y = x
        y = chunk(y, ids.shape[1], seed)
        if chunk.last:
            y = self.measure(chunk, y, targets)
            self.total += y.detach()
        else:
            self.outgoing["forward", *where] = y.detach()
        if self.reducer is not None:
            self.saved[where] = x, y

    def backward(self, action: Action) -> None:
        chunk, where = self.model[action.chunk], (action.chunk, action.micro_batch)
        x, y = self.saved.pop(where)
        dy = None if chunk.last else self._received(("backward_input", *where))
        with self._final_backward(action):
            torch.autograd.backward(y, dy)
        if x is not None:
            assert x.grad is not None
            self.outgoing["backward_input", *where] = x.grad

    def backward_input(self, action: Action) -> None:
        """backward, with the weights' gradients put off."""
        with self.model.parallel.deferred.collect() as weights:
            self.backward(action)
        self.weights[action.chunk, action.micro_batch] = weights

    @torch.no_grad()
    def backward_weight(self, action: Action) -> None:
        assert self.reducer is not None
        with self._final_backward(action):
            for weight, compute in self.weights.pop((action.chunk, action.micro_batch)):
                gradient = compute()
                if gradient is not None:
                    self.reducer.add(weight, gradient)

    def _final_backward(self, action: Action) -> AbstractContextManager[None]:
        """Gradients that the last micro-batch leaves are complete."""
        assert self.reducer is not None
        last = action.micro_batch == len(self.batches) - 1
        return self.reducer.final_backward() if last else nullcontext()

    def _send_or_receive(self, message: P2POp) -> None:
        key = (message.payload, message.chunk, message.micro_batch)
        if message.direction == "send":
            tensor = self.outgoing.pop(key)
            self.sends.append((tensor, self.axis.start_send(tensor, message.peer)))
            if len(self.sends) > IN_FLIGHT:
                self.sends.popleft()[1]()
        else:
            tensor = self._empty_activation(self.model[message.chunk], message.micro_batch)
            self.receiving[key] = tensor, self.axis.start_receive(tensor, message.peer)

    def _received(self, key: MessageKey) -> Tensor:
        tensor, finish = self.receiving.pop(key)
        finish()
        return tensor

    def _empty_activation(self, chunk: GPT, micro_batch: int) -> Tensor:
        """Room for x of a micro-batch, in the outer layout."""
        parallel, outer = chunk.parallel, chunk.parallel.mode.outer
        tokens = self.batches[micro_batch][0].numel() // parallel.num_shards(outer.tokens)
        hidden = chunk.config.n_embd // parallel.num_shards(outer.hidden)
        return torch.empty(tokens, hidden, dtype=parallel.compute, device=parallel.device)
