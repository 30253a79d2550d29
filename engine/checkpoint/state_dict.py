"""The tensors of a training, by names that no layout changes.

    model.NAME             a parameter
    optimizer.NAME.STATE   what the optimizer keeps beside it: of its shape, or a number
    rng.RANK               the random generators of a rank, JSON in uint8

A parameter's box is also that of its optimizer state. A tied table goes by one name on both of the
ranks that hold it: it is written once and read by both. What is on a disk, offloaded, is read from
there when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import rng
from engine.checkpoint.dcp_shard import Boxed
from engine.nvme.streamed_optimizer import StreamedOptimizer
from engine.training.step import Optimizer
from models.chunks import Chunks
from models.parallel.shard import Box

MODEL, OPTIMIZER, RNG = "model.", "optimizer.", "rng."

Tensors = dict[str, Tensor]  # Boxed, unless whole


def of_model(model: Chunks) -> Tensors:
    """This rank's piece of every parameter it holds."""
    boxes = model.boxes()

    def read(parameter: nn.Parameter, box: Box) -> Tensor:
        return model.part.read(parameter)[box.valid]

    return {
        MODEL + name: Boxed(partial(read, parameter, boxes[name]), boxes[name], parameter.dtype)
        for name, parameter in model.named_parameters()
    }


def of_optimizer(model: Chunks, optimizer: Optimizer) -> Tensors:
    """This rank's piece of every state that the optimizer keeps by now."""
    boxes = model.boxes()

    def read(name: str, key: str) -> Tensor:
        assert isinstance(optimizer, StreamedOptimizer)
        state: Tensor = optimizer.state_of(name)[key][boxes[name].valid]
        return state

    found: Tensors = {}
    for name, states in _states(model, optimizer):
        for key, state in states.items():
            path = f"{OPTIMIZER}{name}.{key}"
            if isinstance(state, torch.dtype):
                found[path] = Boxed(partial(read, name, key), boxes[name], state)
            elif isinstance(state, Tensor) and state.dim():
                assert tuple(state.shape) == boxes[name].local, f"{path} has no box"
                found[path] = Boxed.of(state, boxes[name])
            elif state is not None:
                assert isinstance(state, Tensor), f"{path} is no tensor: {state}"
                found[path] = Boxed.whole(state)
    return found


def of_rng(rank: int, device: torch.device) -> Tensors:
    """The state of this rank's random generators."""
    text = bytearray(rng.snapshot(device).encode())
    return {f"{RNG}{rank}": Boxed.whole(torch.frombuffer(text, dtype=torch.uint8))}


def restore_rng(state: Tensor, device: torch.device) -> None:
    """Set the random generators of this process to ``state``, uint8."""
    rng.restore(bytes(state.tolist()).decode(), device)


def _states(model: Chunks, optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parameter -> states; of one that is on a disk, its type."""
    if isinstance(optimizer, StreamedOptimizer):
        yield from optimizer.states_held()
        return
    assert isinstance(optimizer, torch.optim.Optimizer)
    for name, parameter in model.named_parameters():
        yield name, optimizer.state.get(parameter, {})
