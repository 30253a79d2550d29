"""Whole tensors from the pieces of all ranks; a run's weights on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint.stored import Stored
from engine.errors import Failed
from models import state
from models.chunks import Chunks
from models.parallel.box import Box
from models.parallel.partition import Partition


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


def save(model: Chunks, path: Path, *, writes: bool) -> None:
    """The whole model's weights as safetensors, from the rank that ``writes``, which is of the
    first pipeline stage. All ranks call it. The file is complete or not there at all."""
    tensors = {}
    for name, tensor in gathered(model):
        if writes:
            tensors[name] = tensor.cpu().clone()
    if writes:
        draft = path.with_suffix(".tmp")
        save_file(tensors, draft)
        draft.replace(path)


def load(model: Chunks, path: Path, share: int = 0, of: int = 1) -> None:
    """Each rank's boxes, in any layout, from a checkpoint or from a file that ``save`` wrote. Takes
    no more memory than the model and its largest tensor.

    Of a checkpoint the files are read to verify them first; ``of`` ranks share them out, of which
    this is number ``share``. Raises Failed where one is not what was written, or the tensors are
    another model's.
    """
    if path.is_dir():
        stored = Stored(path)
        if problems := stored.problems(share, of):
            raise Failed(f"{path}: {'; '.join(problems)}")
        stored.load_model(model)
        return
    try:
        state.load(model, _tensors(path))
    except (ValueError, SafetensorError) as error:
        raise Failed(f"{path}: {error}") from None


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Whole, one at a time."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        for name in names:
            yield name, file.get_tensor(name)
