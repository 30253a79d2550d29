"""The tensors of a training, by names that no layout changes.

    model.NAME             a parameter
    optimizer.NAME.STATE   what the optimizer keeps beside it: of its shape, or a number
    rng.RANK               the random generators of a rank, JSON in uint8

A parameter's box is also that of its optimizer state. A tied table goes by one name on both of the
ranks that hold it: it is written once and read by both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from engine.checkpoint import rng
from engine.checkpoint.boxed import Boxed
from models.chunks import Chunks

MODEL, OPTIMIZER, RNG = "model.", "optimizer.", "rng."

Tensors = dict[str, Tensor]  # Boxed, all of them


def of_model(model: Chunks) -> Tensors:
    """This rank's piece of every parameter it holds."""
    boxes = model.boxes()
    return {
        MODEL + name: Boxed.of(tensor, boxes[name]) for name, tensor in model.named_parameters()
    }


def of_optimizer(model: Chunks, optimizer: torch.optim.Optimizer) -> Tensors:
    """This rank's piece of every state that the optimizer keeps by now."""
    found: Tensors = {}
    boxes = model.boxes()
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is None:
                continue
            assert isinstance(value, Tensor), f"{key} of {name}: {value}"
            if value.dim():
                assert value.shape == parameter.shape, f"{key} of {name} has no box"
                boxed = Boxed.of(value, boxes[name])
            else:
                boxed = Boxed.whole(value.detach())
            found[f"{OPTIMIZER}{name}.{key}"] = boxed
    return found


def of_rng(rank: int, device: torch.device) -> Tensors:
    """The state of this rank's random generators."""
    text = bytearray(rng.snapshot(device).encode())
    return {f"{RNG}{rank}": Boxed.whole(torch.frombuffer(text, dtype=torch.uint8))}


def restore_rng(state: Tensor, device: torch.device) -> None:
    """Set the random generators of this process to ``state``, uint8."""
    rng.restore(bytes(state.tolist()).decode(), device)


def prepare_optimizer(
    model: Chunks, optimizer: torch.optim.Optimizer, metadata: Metadata
) -> Tensors:
    """Make room in a new optimizer for the states that a checkpoint has: what is to be read."""
    saved = _states(metadata)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        of_parameter = saved.get(names[id(parameter)], {})
        state["state"][number] = {
            key: torch.zeros_like(parameter)
            if about.size
            else torch.zeros((), dtype=about.properties.dtype)
            for key, about in of_parameter.items()
        }
    optimizer.load_state_dict(state)  # which knows where a number has to be
    return of_optimizer(model, optimizer)


def _states(metadata: Metadata) -> dict[str, dict[str, TensorStorageMetadata]]:
    """Parameter -> name of a state -> what is saved of it."""
    found: dict[str, dict[str, TensorStorageMetadata]] = {}
    for path, about in metadata.state_dict_metadata.items():
        if path.startswith(OPTIMIZER):
            assert isinstance(about, TensorStorageMetadata)
            name, _, key = path.removeprefix(OPTIMIZER).rpartition(".")
            found.setdefault(name, {})[key] = about
    return found
