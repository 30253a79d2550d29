"""Runs the micro-batches of a step through this rank's stages, in the order of a schedule."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from engine.pipeline_schedule import Action, Shape, Transfer, actions, with_transfers
from engine.training.gradients import GradientSum
from models.chunks import Chunks
from models.gpt import GPT
from models.parallel.collectives import Axis, Finish
from models.parallel.context import Later
from models.parallel.tuning import IN_FLIGHT

Batch = tuple[Tensor, Tensor]
"""ids and targets, int64 [samples, seq_len]; targets of -100 do not count."""

Key = tuple[str, int, int]
"""What is sent ("forward": activations, "input": their gradient), chunk, micro-batch."""


Measure = Callable[[GPT, Tensor, Tensor], Tensor]
"""What the last stage makes of a micro-batch, of its x [T_local, C_local] and targets [samples,
seq_len]: numbers that are added up over micro-batches and ranks."""


def loss_of(scale: float) -> Measure:
    """This rank's share of the summed cross-entropy, times ``scale``."""
    return lambda model, x, targets: model.loss(x, targets, scale)


class Pipeline:
    """``schedule`` over the ranks of ``axis``; one rank is a pipeline too, without messages.

    Activations [T_local, C_local] travel as they are cut: each rank talks to the one with its own
    tensor coordinates in the stage before or after.
    """

    def __init__(self, model: Chunks, axis: Axis, schedule: str) -> None:
        self.model, self.axis, self.schedule = model, axis, schedule
        self.plan = cache(self._plan)

    def train(
        self, batches: Sequence[Batch], seeds: Sequence[int], scale: float, sums: GradientSum
    ) -> Tensor:
        """Gradients of all ``batches``, added up; this rank's share of the scaled loss, float64.

        ``seeds`` key the dropout masks, one a micro-batch; ``sums`` is told which gradients are
        complete, so that their sum over ranks starts at once.
        """
        one = _Pass(self, batches, seeds, loss_of(scale), sums)
        return one.run(self.plan(len(batches), True))

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch], measure: Measure, total: Tensor) -> Tensor:
        """``total``, in float64, with this rank's share of what is measured added, without
        gradients."""
        one = _Pass(self, batches, [0] * len(batches), measure, None, total)
        return one.run(self.plan(len(batches), False))

    def _plan(self, micro_batches: int, backward: bool) -> list[Action | Transfer]:
        chunks = len(self.model.chunks)
        shape = Shape(ranks=self.axis.size, micro_batches=micro_batches, chunks=chunks)
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
        return with_transfers(orders, shape)[self.axis.index]


class _Pass:
    """One run through a plan: what is held between its actions."""

    def __init__(
        self,
        pipeline: Pipeline,
        batches: Sequence[Batch],
        seeds: Sequence[int],
        measure: Measure,
        sums: GradientSum | None,
        total: Tensor | None = None,
    ) -> None:
        self.model, self.axis = pipeline.model, pipeline.axis
        self.batches, self.seeds, self.sums = batches, seeds, sums
        self.measure = measure
        zero = torch.zeros((), dtype=torch.float64, device=self.model.part.device)
        self.total = zero if total is None else total
        self.held: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = {}
        self.weights: dict[tuple[int, int], Later] = {}
        self.arriving: dict[Key, tuple[Tensor, Finish]] = {}
        self.leaving: dict[Key, Tensor] = {}
        self.sends: deque[tuple[Tensor, Finish]] = deque()

    def run(self, plan: list[Action | Transfer]) -> Tensor:
        for item in plan:
            if isinstance(item, Transfer):
                self._transfer(item)
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
            x = self._arrived(("forward", *where)).requires_grad_(self.sums is not None)
            y = x
        y = chunk(y, ids.shape[1], seed)
        if chunk.last:
            y = self.measure(chunk, y, targets)
            self.total += y.detach()
        else:
            self.leaving["forward", *where] = y.detach()
        if self.sums is not None:
            self.held[where] = x, y

    def backward(self, action: Action) -> None:
        chunk, where = self.model[action.chunk], (action.chunk, action.micro_batch)
        x, y = self.held.pop(where)
        dy = None if chunk.last else self._arrived(("input", *where))
        with self._sums(action):
            torch.autograd.backward(y, dy)
        if x is not None:
            assert x.grad is not None
            self.leaving["input", *where] = x.grad

    def input(self, action: Action) -> None:
        """backward, with the weights' gradients put off."""
        with self.model.part.deferred.collect() as weights:
            self.backward(action)
        self.weights[action.chunk, action.micro_batch] = weights

    @torch.no_grad()
    def weight(self, action: Action) -> None:
        assert self.sums is not None
        with self._sums(action):
            for weight, compute in self.weights.pop((action.chunk, action.micro_batch)):
                gradient = compute()
                if gradient is not None:
                    self.sums.add(weight, gradient)

    def _sums(self, action: Action) -> AbstractContextManager[None]:
        """Gradients that the last micro-batch leaves are complete."""
        assert self.sums is not None
        last = action.micro_batch == len(self.batches) - 1
        return self.sums.complete() if last else nullcontext()

    def _transfer(self, transfer: Transfer) -> None:
        key = (transfer.of, transfer.chunk, transfer.micro_batch)
        if transfer.way == "send":
            tensor = self.leaving.pop(key)
            self.sends.append((tensor, self.axis.start_send(tensor, transfer.peer)))
            if len(self.sends) > IN_FLIGHT:
                self.sends.popleft()[1]()
        else:
            tensor = self._empty(self.model[transfer.chunk], transfer.micro_batch)
            self.arriving[key] = tensor, self.axis.start_receive(tensor, transfer.peer)

    def _arrived(self, key: Key) -> Tensor:
        tensor, finish = self.arriving.pop(key)
        finish()
        return tensor

    def _empty(self, chunk: GPT, micro_batch: int) -> Tensor:
        """Room for x of a micro-batch, in the outer layout."""
        part, outer = chunk.part, chunk.part.mode.outer
        tokens = self.batches[micro_batch][0].numel() // part.pieces(outer.tokens)
        hidden = chunk.sizes.n_embd // part.pieces(outer.hidden)
        return torch.empty(tokens, hidden, dtype=part.compute, device=part.device)
