"""The tensors of a checkpoint, under names that do not depend on the layout.

    model.NAME             a parameter
    optimizer.NAME.STATE   an optimizer state of the parameter: of its shape, or a scalar
    rng.RANK               the random generators of a rank, JSON as uint8

An optimizer state is sharded as its parameter. A tied embedding has the same name on both stages
that hold a copy: it is written once, and both stages read it. A tensor that is offloaded to a disk
is read from there only when it is written to the checkpoint.
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

Tensors = dict[str, Tensor]
"""Name -> DCPShard; a plain tensor only as the target of a read."""


def model_tensors(model: ModelChunks) -> Tensors:
    """Map ``model.NAME`` to this rank's shard, for each of the rank's parameters."""
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
    """Map ``optimizer.NAME.STATE`` to this rank's shard, for each optimizer state that exists by
    now."""
    shards = model.shards()

    def read(state: StateTensor, shard: Shard) -> Tensor:
        return state.read()[shard.valid_slices]

    tensors: Tensors = {}
    for name, states in optimizer.states():
        shard = shards[name]
        for key, state in states.items():
            path = f"{OPTIMIZER}{name}.{key}"
            if state.shape:
                assert state.shape == shard.local, f"{path} is not shaped like its parameter"
                tensors[path] = DCPShard(partial(read, state, shard), shard, state.dtype)
            else:
                tensors[path] = DCPShard.unsharded(state.read())
    return tensors


def rng_tensors(rank: int, device: torch.device) -> Tensors:
    """Return the states of this rank's random generators."""
    text = bytearray(rng.rng_state(device).encode())
    return {f"{RNG}{rank}": DCPShard.unsharded(torch.frombuffer(text, dtype=torch.uint8))}


def restore_rng(state: Tensor, device: torch.device) -> None:
    """Set the random generators of this process to ``state``, a tensor of ``rng_tensors``."""
    rng.restore_rng_state(bytes(state.tolist()).decode(), device)
