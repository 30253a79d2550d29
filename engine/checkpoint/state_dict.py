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
from engine.checkpoint.dcp_shard import DCPShard
from engine.nvme.streamed_optimizer import StreamedOptimizer
from engine.training.step import Optimizer
from models.chunks import ModelChunks
from models.parallel.shard import Shard

MODEL, OPTIMIZER, RNG = "model.", "optimizer.", "rng."

Tensors = dict[str, Tensor]  # Boxed, unless whole


def model_tensors(model: ModelChunks) -> Tensors:
    """This rank's piece of every parameter it holds."""
    shards = model.shards()

    def read(parameter: nn.Parameter, shard: Shard) -> Tensor:
        return model.parallel.read(parameter)[shard.valid_slices]

    return {
        MODEL + name: DCPShard(
            partial(read, parameter, shards[name]), shards[name], parameter.dtype
        )
        for name, parameter in model.named_parameters()
    }


def optimizer_tensors(model: ModelChunks, optimizer: Optimizer) -> Tensors:
    """This rank's piece of every state that the optimizer keeps by now."""
    shards = model.shards()

    def read(name: str, key: str) -> Tensor:
        assert isinstance(optimizer, StreamedOptimizer)
        state: Tensor = optimizer.state_of(name)[key][shards[name].valid_slices]
        return state

    found: Tensors = {}
    for name, states in _states(model, optimizer):
        for key, state in states.items():
            path = f"{OPTIMIZER}{name}.{key}"
            if isinstance(state, torch.dtype):
                found[path] = DCPShard(partial(read, name, key), shards[name], state)
            elif isinstance(state, Tensor) and state.dim():
                assert tuple(state.shape) == shards[name].local, f"{path} has no box"
                found[path] = DCPShard.of_local(state, shards[name])
            elif state is not None:
                assert isinstance(state, Tensor), f"{path} is no tensor: {state}"
                found[path] = DCPShard.unsharded(state)
    return found


def rng_tensors(rank: int, device: torch.device) -> Tensors:
    """The state of this rank's random generators."""
    text = bytearray(rng.rng_state(device).encode())
    return {f"{RNG}{rank}": DCPShard.unsharded(torch.frombuffer(text, dtype=torch.uint8))}


def restore_rng(state: Tensor, device: torch.device) -> None:
    """Set the random generators of this process to ``state``, uint8."""
    rng.restore_rng_state(bytes(state.tolist()).decode(), device)


def _states(model: ModelChunks, optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parameter -> states; of one that is on a disk, its type."""
    if isinstance(optimizer, StreamedOptimizer):
        yield from optimizer.state_types()
        return
    assert isinstance(optimizer, torch.optim.Optimizer)
    for name, parameter in model.named_parameters():
        yield name, optimizer.state.get(parameter, {})
