"""Unsharded tensors, assembled from the shards of all ranks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.chunks import ModelChunks
from models.parallel.context import ParallelContext
from models.parallel.shard import Shard, shard_sizes


@torch.no_grad()
def unshard(local: Tensor, shard: Shard, parallel: ParallelContext) -> Tensor:
    """Gather the global tensor [shard.shape] on every rank. All ranks of the axes that shard the
    tensor call this together."""
    for dim, axes in enumerate(shard.spec):
        size = shard.shape[dim]
        sizes = [size, *shard_sizes(size, [parallel.sizes[name] for name in axes])]
        local = local.narrow(dim, 0, sizes[-1])  # without the rows that suit the device
        # The last axis was split last: gather it first, and drop its padding.
        for name, size in zip(reversed(axes), reversed(sizes[:-1]), strict=True):
            parts = parallel.axes[name].all_gather(local)
            local = torch.cat(list(parts), dim).narrow(dim, 0, size)
    return local


@torch.no_grad()
def unsharded_parameters(model: ModelChunks) -> Iterator[tuple[str, Tensor]]:
    """Gather the parameters of all pipeline stages one at a time, and yield (name, tensor) on the
    ranks of the first stage, to which the other stages send their parameters.

    All ranks call this together and iterate to the end; the other stages yield nothing.
    """
    parallel, shards, local = model.parallel, model.shards(), dict(model.named_parameters())
    pipeline = parallel.axes["pipeline"]
    for stage in range(pipeline.size):
        for name, shape in model.parameters_of_stage(stage):
            tensor = torch.empty(0)
            if pipeline.index == stage:
                values = parallel.read(local[name]).to(parallel.device)
                tensor = unshard(values, shards[name], parallel).contiguous()
                if stage:
                    pipeline.start_send(tensor, 0).wait()
            elif pipeline.index == 0:
                tensor = torch.empty(shape, dtype=parallel.dtype, device=parallel.device)
                pipeline.start_receive(tensor, stage).wait()
            if pipeline.index == 0:
                yield name, tensor
