"""Loading a model's parameters from unsharded tensors, in any layout."""

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
    """Copy this rank's shard of each (name, unsharded tensor) into the model.

    Parameters of other pipeline stages are skipped. One tensor at a time is in memory. Tensors in
    ``resize`` may have more rows than the model's parameter (surplus rows are ignored) or fewer
    (the parameter's remaining rows keep their values).

    Raises:
        ValueError: a name or shape is not the model's, or a parameter is missing.
    """
    shards, local_parameters = model.shards(), dict(model.named_parameters())
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
        parameter = local_parameters[name]
        before = model.parallel.read(parameter).clone() if len(tensor) < shard.shape[0] else None
        with model.parallel.overwrite(parameter) as local:
            local.zero_()
            if before is not None:
                local.copy_(before)
            values = tensor[shard.slices].to(local)  # the slice ends where the tensor ends
            local[shard.valid_slices][: len(values)] = values
        missing.pop(name, None)
    if missing:
        raise ValueError(f"tensors of the model are missing: {', '.join(missing)}")
