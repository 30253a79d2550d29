"""The tensors of a training, by names that no layout changes.

    model.NAME             a parameter
    optimizer.NAME.STATE   what the optimizer keeps beside it: of its shape, or a number
    rng.RANK               the random generators of a rank, JSON in uint8

A parameter's box is also that of its optimizer state. A tied table goes by one name on both of the
ranks that hold it: it is written once and read by both. What is on a disk, offloaded, is read from
there when its turn comes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from engine.checkpoint import rng
from engine.checkpoint.dcp_shard import DCPShard
from engine.optim.optimizer import Optimizer, StateTensor
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

    def read(state: StateTensor, shard: Shard) -> Tensor:
        return state.read()[shard.valid_slices]

    found: Tensors = {}
    for name, states in optimizer.states():
        shard = shards[name]
        for key, state in states.items():
            path = f"{OPTIMIZER}{name}.{key}"
            if state.shape:
                assert state.shape == shard.local, f"{path} is not shaped like its parameter"
                found[path] = DCPShard(partial(read, state, shard), shard, state.dtype)
            else:
                found[path] = DCPShard.unsharded(state.read())
    return found


def rng_tensors(rank: int, device: torch.device) -> Tensors:
    """The state of this rank's random generators."""
    text = bytearray(rng.rng_state(device).encode())
    return {f"{RNG}{rank}": DCPShard.unsharded(torch.frombuffer(text, dtype=torch.uint8))}


def restore_rng(state: Tensor, device: torch.device) -> None:
    """Set the random generators of this process to ``state``, uint8."""
    rng.restore_rng_state(bytes(state.tolist()).decode(), device)
