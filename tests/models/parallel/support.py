"""Inputs of the head and its loss, and a measure of the largest tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.parallel.context import ParallelContext
from models.parallel.loss import Head
from models.parallel.targets import IGNORED
from models.parallel.weight_sharding import WeightSharding

TOKENS, HIDDEN = 24, 12
WHOLE = WeightSharding(dim="H", inputs=HIDDEN, axis=None)
WORDS = (29, 5, 1)  # some ranks have fewer words than others, or none
CHUNKS = (None, 1, 2)


def problem(words: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x [T, H], w [V, H] and targets [T]; the first targets are ignored."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=draw)
    w = torch.randn(words, HIDDEN, dtype=torch.float64, generator=draw)
    targets = torch.randint(words, (TOKENS,), generator=draw)
    targets[:7] = IGNORED
    return x.requires_grad_(), w.requires_grad_(), targets


def head_of(words: int, dtype: torch.dtype = torch.float64, chunk: int | None = None) -> Head:
    part = ParallelContext.single_device(torch.device("cpu"), dtype=dtype, compute=dtype)
    return Head(
        parallel=part,
        shard=part.shard((words, HIDDEN), ((), ())),
        weight_sharding=WHOLE,
        chunk=chunk,
    )


class Largest(TorchDispatchMode):
    """Record the largest output of any operation, in elements."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result
