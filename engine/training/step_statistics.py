"""Statistics of the unsharded tensors of one step, in any layout: gradients, weights, updates,
activations and logits.

Each rank takes the moments of its shards, without padding and without shards that another rank
counts; one all-gather at the end of the step merges them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from engine.training.activations import activation_names, observed
from engine.training.gradients import counted_parameters
from engine.training.tensor_statistics import Statistics, merge, moments, no_moments
from models.chunks import ModelChunks
from models.gpt import GPT
from models.parallel.collectives import Axis
from models.parameters import parameters

GROUPS = "Grads", "Weights", "Step"
"""Tensors of each parameter: the gradient after unscaling and clipping, the weight after the
update, and the update itself."""


class StepStatistics:
    """Collects the statistics of one step. All ranks collect in the same step, because ``result``
    is collective."""

    def __init__(self, model: ModelChunks, world: Axis) -> None:
        self.model, self.world = model, world
        self._shards = model.shards()
        self._moments: dict[str, Tensor] = {}

    def eagerly(self) -> AbstractContextManager[object]:
        """Return a context in which compiled blocks run uncompiled: the hooks of modules inside a
        compiled block would not be called."""
        blocks = [block for chunk in self.model for block in chunk.h.values()]
        if all(block._compiled_call_impl is None for block in blocks):
            return nullcontext()
        eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return eager

    def forward(self, chunk: GPT, targets: Tensor) -> AbstractContextManager[None]:
        """Return a context that observes the forward pass of ``chunk`` for a micro-batch with these
        ``targets``."""
        return observed(chunk, targets, self.add)

    @contextmanager
    def update(self) -> Iterator[None]:
        """Observe the gradients at the start of the ``with`` block, which runs the optimizer's
        step, and the weights and updates at the end of the block. Meanwhile a copy of the rank's
        weights is kept."""
        counted = dict(counted_parameters(self.model))
        for name, parameter in counted.items():
            assert parameter.grad is not None
            self.add(f"Grads/{name}", self._valid(name, parameter.grad))
        before = {name: self._weight(name, weight).clone() for name, weight in counted.items()}
        yield
        for name, parameter in counted.items():
            weight = self._weight(name, parameter)
            self.add(f"Weights/{name}", weight)
            self.add(f"Step/{name}", weight - before.pop(name))

    def result(self) -> dict[str, Statistics]:
        """Merge the moments of all ranks, and return the statistics by name."""
        config, mode, device = self.model.config, self.model.parallel.mode, self._device
        of_parameters = [p.name for p in parameters(config, mode)]
        groups = {group: [f"{group}/{name}" for name in of_parameters] for group in GROUPS}
        names = [*(name for group in groups.values() for name in group), *activation_names(config)]
        none = no_moments(device)
        local = torch.stack([self._moments.get(name, none) for name in names])
        merged = dict(zip(names, merge(self.world.all_gather(local)).cpu(), strict=True))
        for group, members in groups.items():
            merged[f"{group}/global"] = merge(torch.stack([merged[name] for name in members]))
        return {name: Statistics.of(found.tolist()) for name, found in merged.items()}

    @property
    def _device(self) -> torch.device:
        """The device of the moments."""
        return self.model.parallel.device

    @torch.no_grad()
    def add(self, name: str, x: Tensor) -> None:
        """Merge the moments of ``x``, this rank's shard, into the moments of the tensor ``name``.
        Activations are added once per micro-batch."""
        found = moments(x).to(self._device)
        if (earlier := self._moments.get(name)) is not None:
            found = merge(torch.stack((earlier, found)))
        self._moments[name] = found

    def _weight(self, name: str, parameter: nn.Parameter) -> Tensor:
        return self._valid(name, self.model.parallel.read(parameter))

    def _valid(self, name: str, tensor: Tensor) -> Tensor:
        """Return ``tensor``, a shard of the parameter ``name``, without its padding."""
        return tensor[self._shards[name].valid_slices]
