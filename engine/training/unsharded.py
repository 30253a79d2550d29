"""Whole tensors from the pieces of all ranks; a run's weights to the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.atomic_write import atomic_path
from engine.inout.saved_model import shapes_of
from engine.inout.tensor_writers import total_bytes, write_safetensors
from models.chunks import ModelChunks
from models.parallel.context import ParallelContext
from models.parallel.shard import Shard


@torch.no_grad()
def unshard(local: Tensor, shard: Shard, parallel: ParallelContext) -> Tensor:
    """The global tensor [box.shape] of which each rank holds a piece.

    Called by all ranks of the axes that cut it alike; every one gets the whole.
    """
    for dim, axes in enumerate(shard.spec):
        held = [shard.shape[dim]]
        for name in axes:
            held.append(-(-held[-1] // parallel.sizes[name]))
        # The fastest axis cut last: undo it first, and what it was padded with.
        for name, size in zip(reversed(axes), reversed(held[:-1]), strict=True):
            pieces = parallel.axes[name].all_gather(local)
            local = torch.cat(list(pieces), dim).narrow(dim, 0, size)
    return local


@torch.no_grad()
def unsharded_parameters(model: ModelChunks) -> Iterator[tuple[str, Tensor]]:
    """All parameters by name, whole, one at a time, on the ranks of the first pipeline stage, to
    which the others send theirs. Called by all ranks alike, and run to its end."""
    parallel, shards, mine = model.parallel, model.shards(), dict(model.named_parameters())
    pipeline = parallel.axes["pipeline"]
    for stage in range(pipeline.size):
        for name, shape in model.parameters_of_stage(stage):
            tensor = torch.empty(0)
            if pipeline.index == stage:
                piece = parallel.read(mine[name]).to(parallel.device)
                tensor = unshard(piece, shards[name], parallel).contiguous()
                if stage:
                    pipeline.start_send(tensor, 0).wait()
            elif pipeline.index == 0:
                tensor = torch.empty(shape, dtype=parallel.dtype, device=parallel.device)
                pipeline.start_receive(tensor, stage).wait()
            if pipeline.index == 0:
                yield name, tensor


def save_unsharded(
    model: ModelChunks, path: Path, metadata: Mapping[str, str], *, writes: bool
) -> None:
    """Write the whole model's weights as safetensors, from the rank that ``writes``, which is of
    the first pipeline stage. All ranks call it. The file is complete or not there at all; no more
    than a tensor is gathered at a time.

    Raises RunError where the disk does not take it.
    """
    if not writes:
        for _ in unsharded_parameters(model):
            pass
        return
    shapes, dtype = shapes_of(model.config), model.parallel.dtype
    with atomic_path(path, required_bytes=total_bytes(shapes, dtype), replace=True) as new:
        write_safetensors(new, unsharded_parameters(model), shapes, dtype=dtype, metadata=metadata)
