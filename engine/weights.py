"""Whole tensors from the pieces of a tensor group, and a run's weights as one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import state
from models.gpt import GPT
from models.parallel.box import Box
from models.parallel.layers import named_boxes
from models.parallel.partition import Partition


@torch.no_grad()
def whole(piece: Tensor, box: Box, part: Partition) -> Tensor:
    """The global tensor [box.shape] of which each rank of the tensor group holds a piece.

    Called by all of them alike; every one gets the whole.
    """
    for dim, axes in enumerate(box.cut):
        for name in reversed(axes):  # the fastest axis cut last: undo it first
            piece = torch.cat(list(part.axes[name].all_gather(piece)), dim)
    return piece[tuple(slice(0, n) for n in box.shape)]


def gathered(model: GPT) -> Iterator[tuple[str, Tensor]]:
    """All parameters by name, whole, one at a time."""
    boxes = named_boxes(model)
    for name, parameter in model.named_parameters():
        yield name, whole(parameter.detach(), boxes[name], model.part)


def save(model: GPT, path: Path, *, writes: bool) -> None:
    """The whole model's weights as safetensors, from the rank that ``writes``.

    All ranks of its tensor group call it. The file is complete or not there at all.
    """
    tensors = {}
    for name, tensor in gathered(model):
        if writes:
            tensors[name] = tensor.cpu().contiguous()
    if writes:
        draft = path.with_suffix(".tmp")
        save_file(tensors, draft)
        draft.replace(path)


def load(model: GPT, path: Path) -> None:
    """Each rank's boxes from a file that ``save`` wrote, in any layout."""
    state.load(model, load_file(path).items())
