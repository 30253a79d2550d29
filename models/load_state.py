"""A model's parameters from whole tensors, in any layout."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from models.chunks import ModelChunks
from models.parallel.registry import modes
from models.parameters import parameters


@torch.no_grad()
def load_state(
    model: ModelChunks, tensors: Iterable[tuple[str, Tensor]], *, resize: Collection[str] = ()
) -> None:
    """Copy this rank's box of each (name, whole tensor). Those that other pipeline stages hold are
    passed over. Needs no more memory than the tensor in hand.

    Those of ``resize`` may have more rows, which are left out, or fewer: then the model's further
    rows stay as they are.

    Raises:
        ValueError: a name or shape is not the model's, or a parameter is missing.
    """
    shards, held = model.shards(), dict(model.named_parameters())
    known = {p.name for p in parameters(model.config, modes()["serial"])}
    missing = dict(shards)
    for name, tensor in tensors:
        if name not in known:
            raise ValueError(f"{name} is not a parameter of this model")
        if name not in shards:
            continue
        shard = shards[name]
        resized = name in resize and tuple(tensor.shape[1:]) == shard.shape[1:]
        if tuple(tensor.shape) != shard.shape and not resized:
            raise ValueError(f"{name} is {list(tensor.shape)}, the model's is {list(shard.shape)}")
        before = model.parallel.read(held[name]).clone() if len(tensor) < shard.shape[0] else None
        with model.parallel.overwrite(held[name]) as local:
            local.zero_()
            if before is not None:
                local.copy_(before)
            found = tensor[shard.slices].to(local)  # ends where the tensor does
            local[shard.valid_slices][: len(found)] = found
        missing.pop(name, None)
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}")
