"""Whole tensors from the pieces of all ranks; a run's weights to the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.atomic_write import draft
from engine.inout.saved_model import shapes_of
from engine.inout.tensor_writers import size_of, write_safetensors
from models.chunks import Chunks
from models.parallel.context import Partition
from models.parallel.shard import Box


@torch.no_grad()
def whole(piece: Tensor, box: Box, part: Partition) -> Tensor:
    """The global tensor [box.shape] of which each rank holds a piece.

    Called by all ranks of the axes that cut it alike; every one gets the whole.
    """
    for dim, axes in enumerate(box.cut):
        held = [box.shape[dim]]
        for name in axes:
            held.append(-(-held[-1] // part.sizes[name]))
        # The fastest axis cut last: undo it first, and what it was padded with.
        for name, size in zip(reversed(axes), reversed(held[:-1]), strict=True):
            pieces = part.axes[name].all_gather(piece)
            piece = torch.cat(list(pieces), dim).narrow(dim, 0, size)
    return piece


@torch.no_grad()
def gathered(model: Chunks) -> Iterator[tuple[str, Tensor]]:
    """All parameters by name, whole, one at a time, on the ranks of the first pipeline stage, to
    which the others send theirs. Called by all ranks alike, and run to its end."""
    part, boxes, mine = model.part, model.boxes(), dict(model.named_parameters())
    pipeline = part.axes["pipeline"]
    for stage in range(pipeline.size):
        for name, shape in model.held_by(stage):
            tensor = torch.empty(0)
            if pipeline.index == stage:
                piece = part.read(mine[name]).to(part.device)
                tensor = whole(piece, boxes[name], part).contiguous()
                if stage:
                    pipeline.start_send(tensor, 0)()
            elif pipeline.index == 0:
                tensor = torch.empty(shape, dtype=part.dtype, device=part.device)
                pipeline.start_receive(tensor, stage)()
            if pipeline.index == 0:
                yield name, tensor


def save(model: Chunks, path: Path, metadata: Mapping[str, str], *, writes: bool) -> None:
    """Write the whole model's weights as safetensors, from the rank that ``writes``, which is of
    the first pipeline stage. All ranks call it. The file is complete or not there at all; no more
    than a tensor is gathered at a time.

    Raises Failed where the disk does not take it.
    """
    if not writes:
        for _ in gathered(model):
            pass
        return
    shapes, dtype = shapes_of(model.sizes), model.part.dtype
    with draft(path, needs=size_of(shapes, dtype), replace=True) as new:
        write_safetensors(new, gathered(model), shapes, dtype=dtype, metadata=metadata)
