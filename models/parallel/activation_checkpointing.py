"""Activation checkpointing (Chen et al. 2016): save a block's input and recompute the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.mkldnn._linear_pointwise.default,
}
"""Operators whose outputs selective checkpointing saves: matmuls and attention. Other operators
are cheap to recompute."""


def recompute(block: Callable[..., Any], *args: Any, keep: bool) -> Tensor:
    """Run ``block(*args)`` and recompute it in backward; ``keep`` saves the outputs of ``KEPT``.

    Dropout masks are functions of seeds, so no generator state needs to be restored.
    """
    contexts: dict[str, Any] = {"context_fn": selective} if keep else {}
    y: Tensor = checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, **contexts)
    return y


def _policy(
    context: SelectiveCheckpointContext, op: Any, *args: Any, **kw: Any
) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


selective = partial(create_selective_checkpoint_contexts, _policy)
