"""A model's parameters from whole tensors, in any layout."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from models.chunks import Chunks
from models.parallel.registry import modes
from models.parameters import parameters


@torch.no_grad()
def load(model: Chunks, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy this rank's box of each (name, whole tensor). Those that other pipeline stages hold are
    passed over. Needs no more memory than the tensor in hand.

    Raises:
        ValueError: a name or shape is not the model's, or a parameter is missing.
    """
    boxes, held = model.boxes(), dict(model.named_parameters())
    known = {p.name for p in parameters(model.sizes, modes()["serial"])}
    missing = dict(boxes)
    for name, tensor in tensors:
        if name not in known:
            raise ValueError(f"{name} is not a parameter of this model")
        if name not in boxes:
            continue
        box = boxes[name]
        if tuple(tensor.shape) != box.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, the model's is {list(box.shape)}")
        with model.part.rewrite(held[name]) as local:
            local.zero_()
            local[box.valid] = tensor[box.slices].to(local)
        missing.pop(name, None)
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}")
