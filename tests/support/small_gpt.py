"""A small GPT in one process, for tests that generate text."""

from __future__ import annotations

import torch

from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.context import ParallelContext
from models.parallel.layers import initialise

SIZES = GPTConfig(
    n_layer=3, n_head=4, n_embd=20, head_dim=6, n_inner=28, vocab_size=29, block_size=16
)


def small_gpt(sizes: GPTConfig = SIZES, dtype: torch.dtype = torch.float64) -> GPT:
    """Build the GPT in evaluation mode. Its weights are large, so that texts differ clearly."""
    model = GPT(
        sizes, ParallelContext.single_device(torch.device("cpu"), dtype=dtype, compute=dtype)
    ).eval()
    initialise(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model
